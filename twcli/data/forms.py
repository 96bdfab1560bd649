"""The forms of records that are known, in the order in which they are tried.

What the names mean is described by the libraries that defined them: TRL ("Dataset formats and
types": messages, prompt/completion, preference), LLaMA-Factory (data/README: Alpaca, ShareGPT) and
the OpenAI API (tool calls, parts of a content).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from twcli.data import preferences
from twcli.data.fields import Record, checked_text, first_of, kind_of, parsed, refuse, value_of
from twcli.data.record_prompts import (
    BESIDE,
    MAIN_PROMPTS,
    has_prompt,
    instruction,
    joined,
    main_prompt,
    no_pictures,
    prompt_names,
    prompt_of,
)
from twcli.data.turns import Conversation, conversation, system_turn, tools_of, turns_of

# Names of a list of completions; those that are lists of something else where the record has a
# completion beside them; names with a number, such as response_1 or output_b; and of the text in an
# element that is an object.
SEVERAL = ("completions", "responses")
OTHER_SEVERAL = (
    *("generations", "outputs", "samples", "answers", "solutions", "references", "refs"),
    *("targets", "candidates"),
)
NUMBERED = re.compile(
    r"(answer|completion|generation|output|ref|reference|response|solution)_?(\d+|[a-d])"
)
ASKED = ("question", "query", "problem", "prompt", "input", "inputs")
ANSWERED = (
    *("answer", "response", "solution", "completion", "output", "target", "targets"),
    *("generated_solution", "canonical_solution"),
)
# Of several that fit, the first is taken.
PAIRS = tuple(
    dict.fromkeys(
        (
            ("question", "answer"),
            ("question", "response"),
            ("query", "response"),
            ("problem", "solution"),
            ("input", "output"),
            ("inputs", "targets"),
            *product(ASKED, ANSWERED),
            ("mr", "ref"),  # the E2E challenge's meaning representation and reference
            ("meaning_representation", "human_reference"),
            ("meaning_representation", "target"),
            ("source", "target"),
            ("src", "tgt"),
            ("document", "summary"),
            ("article", "highlights"),
            ("article", "summary"),
            ("dialogue", "summary"),
            ("text", "summary"),
            ("content", "summary"),
            ("text", "code"),
            ("user", "assistant"),
            ("human", "assistant"),
        )
    )
)
OUTPUTS = ("output", "response", "completion", "answer", "solution", "target")


@dataclass(frozen=True)
class Form:
    """A way to write a prompt and its completions.

    Attributes:
        name: as `--format` takes it.
        shown: as it is called in a line that is printed.
        fits: whether a record is of this form, and for prompts alone, whether it has a prompt.
        names: the fields of a record that are read.
        read: the completions of a record, at least one. Takes the record and its place; for
            prompts alone `complete` is False and y is empty.
    """

    name: str
    shown: str
    fits: Callable[[Record, bool], bool]
    names: Callable[[Record, bool], Sequence[str]]
    read: Callable[[Record, str, bool], Sequence[Conversation]]


def fields_form(x_field: str, y_field: str | None) -> Form:
    """Two fields that are named: a prompt and a completion, text or turns each."""

    def fits(record: Record, complete: bool) -> bool:
        if complete and y_field not in record:
            return False
        return x_field in record

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        x = value_of(record, x_field, where)
        if not complete or y_field is None:
            y = ""
        else:
            y = value_of(record, y_field, where)
            # the common case, and the fast one; turns may be JSON in a cell
            if type(x) is str and type(y) is str and not (x.startswith("[") or y.startswith("[")):
                x = checked_text(x, x_field, where)
                y = checked_text(y, y_field, where)
                return (Conversation(x, y),)
        if not isinstance(x, str | list | dict):
            checked_text(x, x_field, where)  # which it is not
        prompt = prompt_of(x, x_field, where)
        completions = [(str(y_field), y)]
        return joined({}, prompt, completions, where, complete)

    fields = (x_field,) if y_field is None else (x_field, y_field)
    return Form("fields", " and ".join(fields), fits, lambda *_: fields, read)


def completion_form(field: str) -> Form:
    """A completion that is named, and the prompt by its own name."""

    def fits(record: Record, complete: bool) -> bool:
        if complete and field not in record:
            return False
        return has_prompt(record)

    def names(record: Record, complete: bool) -> Sequence[str]:
        prompt = prompt_names(record)
        return (*prompt, field)

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        no_pictures(record, where)
        prompt = main_prompt(record, where)
        if prompt is None:
            refuse(where, "prompt", f"is missing; the prompt of '{field}' is needed")
        given = []
        if complete:
            completion = value_of(record, field, where)
            given.append((field, completion))
        return joined(record, prompt, given, where, complete)

    return Form("fields", f"a prompt and {field}", fits, names, read)


def turns_form(name: str, *fields: str) -> Form:
    """A whole conversation in one of the fields; its last answer is y."""

    def fits(record: Record, complete: bool) -> bool:
        return any(record.get(field) for field in fields)

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        no_pictures(record, where)
        field = first_of(record, fields) or fields[0]
        value = value_of(record, field, where)
        turns = turns_of(value, field, where)
        if turns[0]["role"] != "system":
            system = system_turn(record, where)
            turns = [*system, *turns]
        tools = tools_of(record, where)
        return [conversation(turns, tools, field, where, complete)]

    def names(record: Record, complete: bool) -> Sequence[str]:
        field = first_of(record, fields) or fields[0]
        return (field, *BESIDE)

    return Form(name, name, fits, names, read)


def _pair_form(name: str, pairs: Sequence[tuple[str, str]]) -> Form:
    """A prompt and a completion in fields of usual names, the first of `pairs` that fits."""

    def pair_of(record: Record, complete: bool) -> tuple[str, str] | None:
        """The first pair of names of which the record has both, or the prompt that it asks for."""
        for prompt, completion in pairs:
            # a text alone is no prompt, and one that is to be summarised is
            alone = not complete and prompt in MAIN_PROMPTS
            if prompt in record and (completion in record or alone):
                return prompt, completion
        return None

    def fits(record: Record, complete: bool) -> bool:
        found = pair_of(record, complete)
        return found is not None

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        with_prompt = [pair for pair in pairs if pair[0] in record] or pairs
        prompt, completion = pair_of(record, complete) or with_prompt[0]
        value = value_of(record, prompt, where)
        asked = prompt_of(value, prompt, where)
        given = []
        if complete:
            answer = value_of(record, completion, where)
            given.append((completion, answer))
        return joined(record, asked, given, where, complete)

    def names(record: Record, complete: bool) -> Sequence[str]:
        found = pair_of(record, complete)
        pair = found or pairs[0]
        return (*pair, *BESIDE)

    return Form(name, name, fits, names, read)


def _alpaca_names(record: Record, complete: bool) -> Sequence[str]:
    """Names of the fields that are read: those of the prompt, and the one that holds the output."""
    prompt = prompt_names(record)
    output = first_of(record, OUTPUTS) or OUTPUTS[0]
    return (*prompt, output)


def _alpaca_fits(record: Record, complete: bool) -> bool:
    """An instruction and its output."""
    if "instruction" not in record:
        return False
    if not complete:
        return True
    return any(name in record for name in OUTPUTS)


def _alpaca_read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    """Instruction and input are the prompt."""
    no_pictures(record, where)
    prompt = instruction(record, where)
    name = first_of(record, OUTPUTS) or OUTPUTS[0]
    given = []
    if complete:
        output = value_of(record, name, where)
        given.append((name, output))
    return joined(record, prompt, given, where, complete)


def _several_names(record: Record) -> list[str]:
    """The fields that hold several completions: one with a list, or some with a text each."""
    if any(record.get(name) is not None for name in SEVERAL):
        return [first_of(record, SEVERAL) or SEVERAL[0]]
    if any(record.get(name) is not None for name in ANSWERED):
        return []  # the others are lists of something else
    name = first_of(record, OTHER_SEVERAL)
    if name is not None and isinstance(record[name], list):
        return [name]
    by_stem: dict[str, list[str]] = {}
    for name, value in record.items():
        match = NUMBERED.fullmatch(str(name))
        if match and value is not None:
            by_stem.setdefault(match[1], []).append(name)
    first = next(iter(by_stem.values()), [])
    if len(first) > 1:
        return first
    return []


def _several_fits(record: Record, complete: bool) -> bool:
    """A prompt and several completions."""
    names = _several_names(record)
    listed = len(names) > 1 or all(isinstance(record[name], list) for name in names)
    return bool(names) and listed and has_prompt(record)


def _several_read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    """A prompt with each of its completions."""
    no_pictures(record, where)
    names = _several_names(record) or [SEVERAL[0]]
    values = [value_of(record, name, where) for name in names]
    prompt = main_prompt(record, where)
    if prompt is None:
        refuse(where, "prompt", "is missing; the prompt of the completions is needed")
    if len(names) == 1:
        name = names[0]
        value = values[0]
        values = [parsed(value, name, where) if isinstance(value, str) else value]
        if not isinstance(values[0], list):
            refuse(where, name, f"must be a list of completions, found {kind_of(value)}")
    return joined(record, prompt, list(zip(names, values, strict=True)), where, complete)


# In order: a record that fits several is read as the first of them.
FORMS = (
    Form(
        "preference",
        "preference (chosen and rejected)",
        preferences.fits,
        preferences.names,
        preferences.read,
    ),
    Form(
        "completions",
        "several completions",
        _several_fits,
        lambda record, _: (*_several_names(record), *prompt_names(record)),
        _several_read,
    ),
    turns_form("messages", "messages"),
    turns_form("sharegpt", "conversations", "conversation"),
    _pair_form("prompt-completion", (("prompt", "completion"), ("prompt", "response"))),
    Form("alpaca", "alpaca", _alpaca_fits, _alpaca_names, _alpaca_read),
    _pair_form("question-answer", PAIRS),
)
PAIRED = ("prompt-completion", "question-answer")
