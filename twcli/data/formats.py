"""The forms in which public data sets write a prompt and its completions, as x, y and turns.

The form of a file is recognised from its first records, or given by `--format`. What the names
mean is described by the libraries that defined them: TRL ("Dataset formats and types": messages,
prompt/completion, preference), LLaMA-Factory (data/README: Alpaca, ShareGPT) and the OpenAI API
(tool calls, parts of a content).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

from twcli.data.fields import (
    EmptyText,
    Record,
    checked_text,
    first_of,
    is_blank,
    kind_of,
    parsed,
    refuse,
    refuse_empty,
    value_of,
)
from twcli.data.turns import (
    SAID,
    SYSTEM,
    TARGET,
    Conversation,
    Turn,
    conversation,
    is_turn,
    is_turns,
    said_calls,
    system_turn,
    text_of,
    tools_of,
    turns_if_any,
    turns_of,
)
from twcli.errors import UserError

AUTO = "auto"
PICTURES = ("images", "image", "videos", "audios")
TURNS = ("messages", "conversations", "conversation")
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
TEXTS = ("response", "completion", "text", "content", "answer", "y", "generation", "output")
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
# Names that mean a prompt where there is no completion beside them.
MAIN_PROMPTS = (
    *("prompt", "instruction", "question", "query", "problem", "x", "input", "inputs"),
    *("mr", "meaning_representation"),
)
CHOSEN, REJECTED = ("chosen", "chosen_messages"), ("rejected", "rejected_messages")
BESIDE = ("tools", *SYSTEM)  # read in every form but `fields`
HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")  # as Anthropic's hh-rlhf writes conversations


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


def form_of(
    records: Sequence[tuple[str, Record]],
    *,
    asked: str = AUTO,
    x_field: str = "x",
    y_field: str | None = "y",
) -> Form:
    """The form of a file, by its first records.

    Args:
        records: places and records, at least one.
        asked: the form to take, whatever the records look like.
        x_field, y_field: fields that hold prompt and completion; named otherwise than x and y they
            mean the form `fields`. y_field is None for prompts alone.

    Raises:
        UserError: names the fields of the first record and what they look like.
    """
    first = records[0][1]
    fields = _fields_form(x_field, y_field)
    known = {form.name: form for form in (fields, *FORMS)}
    named = x_field != "x" or y_field not in ("y", None)
    if asked not in (AUTO, fields.name) and named:
        raise UserError(
            f"--format {asked}: has field names of its own; leave --x-field and --y-field out"
        )
    if asked != AUTO:
        return known[asked]
    if named:
        return _half_named(first, x_field, y_field) or fields
    complete = y_field is not None
    form = _fitting(known, [record for _, record in records], complete)
    if form is None:
        plain = _fitting(known, [_plainly_named(record) for _, record in records], complete)
        form = _turns_elsewhere(first) if plain is None else _of_plain_names(plain)
    if form is not None:
        return _showing_names(form, first, complete)
    where = records[0][0]
    raise UserError(f"{where}: {_unknown(first, complete, alone=len(records) == 1)}")


def _fitting(known: dict[str, Form], records: list[Record], complete: bool) -> Form | None:
    """The first form that all records are of; else the first that the first one is of."""
    candidates = [form for form in known.values() if form.fits(records[0], complete)]
    for form in candidates:
        if all(form.fits(record, complete) for record in records):
            return form
    return candidates[0] if candidates else None


def _turns_elsewhere(first: Record) -> Form | None:
    """The form of a conversation in a field of another name, where one field holds turns."""
    held = []
    for name, value in first.items():
        turns = turns_if_any(value)
        if is_turns(turns) and len(turns) > 1 and all(first_of(turn, SAID) for turn in turns):
            held.append(name)
    if len(held) != 1:
        return None
    return replace(_turns_form("messages", held[0]), shown=f"messages ({held[0]})")


def _plainly_named(record: Record) -> Record:
    """The record with the names of its fields in small letters, as forms have them."""
    return {_plain(name): part for name, part in record.items()}


def _plain(name: Any) -> str:
    """A field's name as forms have it."""
    return str(name).strip().lower().replace(" ", "_")


def _showing_names(form: Form, first: Record, complete: bool) -> Form:
    """The form with the names of its two fields, where those vary."""
    if form.name not in PAIRED:
        return form
    asked, *rest = (name for name in form.names(first, complete) if name in first)
    names = f"{asked} and {rest[0]}" if complete else asked
    return replace(form, shown=f"{form.shown} ({names})")


def _of_plain_names(form: Form) -> Form:
    """The form of records whose fields have its names with capitals or spaces in them."""

    def names(record: Record, complete: bool) -> Sequence[str]:
        read = form.names(_plainly_named(record), complete)
        return [name for name in record if _plain(name) in read]

    return Form(
        form.name,
        form.shown,
        lambda record, complete: form.fits(_plainly_named(record), complete),
        names,
        lambda record, where, complete: form.read(_plainly_named(record), where, complete),
    )


def _half_named(first: Record, x_field: str, y_field: str | None) -> Form | None:
    """The form where one of the two fields is named and the record does not have the usual other
    one, which is then found by its name; None where both are there, or the other cannot be found.
    """
    if y_field is None:
        return None
    if x_field == "x" and "x" not in first and _has_prompt(first):
        return _completion_form(y_field)
    if y_field == "y" and "y" not in first:
        found = next((name for name in (*ANSWERED, "ref", "summary") if name in first), None)
        if found not in (None, x_field):
            return _fields_form(x_field, found)
    return None


def _has_prompt(record: Record) -> bool:
    return any(record.get(name) is not None for name in (*MAIN_PROMPTS, *TURNS))


def _completion_form(field: str) -> Form:
    """A completion that is named, and the prompt by its own name."""

    def fits(record: Record, complete: bool) -> bool:
        return _has_prompt(record) and (not complete or field in record)

    def names(record: Record, complete: bool) -> Sequence[str]:
        return (*_prompt_names(record), field)

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        _no_pictures(record, where)
        prompt = _main_prompt(record, where)
        if prompt is None:
            refuse(where, "prompt", f"is missing; the prompt of '{field}' is needed")
        given = [(field, value_of(record, field, where))] if complete else []
        return _joined(record, prompt, given, where, complete)

    return Form("fields", f"a prompt and {field}", fits, names, read)


def _no_pictures(record: Record, where: str) -> None:
    """Raises UserError for a record with pictures or sound, which are not read."""
    if (name := next((n for n in PICTURES if record.get(n)), None)) is not None:
        refuse(where, name, "holds pictures or sound, which are not read; take such records out")


def _joined(
    record: Record,
    prompt: str | list[Turn],
    completions: Sequence[tuple[str, Any]],
    where: str,
    complete: bool,
) -> Sequence[Conversation]:
    """A prompt and each of its completions; text with text stays text, unless the record has a
    system prompt or tools.

    Args:
        completions: names of fields and what they hold: text, a turn, turns, or a list of these.

    Raises:
        EmptyText: a completion is empty; the others of the record are its `others`.
    """
    tools = tools_of(record, where)
    system = system_turn(record, where)
    plain = isinstance(prompt, str) and not system and not tools
    if plain and not complete:
        return [Conversation(str(prompt), "")]
    if isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
    else:
        turns = prompt
        system = system if not prompt or prompt[0]["role"] != "system" else []
    if not complete:
        return [conversation([*system, *turns], tools, "prompt", where, complete)]

    def joined(field: str, value: Any) -> Conversation:
        if isinstance(value, list):
            answer = turns_of(value, field, where)
        else:
            text = checked_text(value, field, where)
            if plain:
                return Conversation(str(prompt), text)
            calls = said_calls(text) if tools else None
            turn: Turn = {"role": TARGET, "content": "" if calls else text}
            answer = [turn | {"tool_calls": calls} if calls else turn]
        # a whole conversation, of which the prompt is a repetition
        whole = answer[0]["role"] != TARGET and len(answer) > 1
        if whole and not _repeats(answer, prompt):
            refuse(where, field, "is a whole conversation, in which the record's prompt is not")
        before = answer if whole else [*turns, *answer]
        if before[0]["role"] != "system":
            before = [*system, *before]
        return conversation(before, tools, field, where, complete)

    found = []
    empty = None
    for field, value in chain.from_iterable(_each(f, v, where) for f, v in completions):
        try:
            found.append(joined(field, value))
        except EmptyText as error:
            empty = empty or error
    if empty is not None:
        empty.others = found
        raise empty
    return found


def _repeats(turns: list[Turn], prompt: str | list[Turn]) -> bool:
    """Whether turns contain the prompt that they are said to follow."""
    if isinstance(prompt, str):
        return any(prompt.strip() in text_of(turn) for turn in turns)
    return turns[: len(prompt)] == prompt


def _each(field: str, value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The completions in a field: one, or a list of several, each text, turns or neither."""
    value = turns_if_any(value)
    if isinstance(value, dict) and not is_turn(value):
        name = first_of(value, TEXTS)
        if name is None:
            refuse(where, field, f"has none of {', '.join(TEXTS)}")
        yield from _each(f"{field}.{name}", value[name], where)
    elif isinstance(value, dict):
        yield field, [value]
    elif isinstance(value, list) and not is_turns(value):
        if not value:
            refuse_empty(where, field, "an empty list")
        for number, one in enumerate(value):
            yield from _each(f"{field}[{number}]", one, where)
    else:
        yield field, value


def _prompt(value: Any, field: str, where: str) -> str | list[Turn]:
    """A prompt as text or turns; raises UserError for what is neither."""
    value = turns_if_any(value)
    if isinstance(value, list) and len(value) == 1 and is_turns(value[0]):
        value = value[0]  # a list of conversations, of which there is one
    if _is_column(value):
        refuse(
            where,
            field,
            f"holds {len(value):,} values, as a file that is written by columns; write one record "
            "a line (in pandas orient='records', lines=True)",
        )
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return turns_of(value, field, where)
    return checked_text(value, field, where)


def _is_column(value: Any) -> bool:
    """Whether a prompt is many texts: the column of a table, as a list or by row number."""
    if isinstance(value, dict):
        return bool(value) and all(name.isdecimal() for name in value)
    return isinstance(value, list) and len(value) > 1 and all(isinstance(v, str) for v in value)


def _fields_form(x_field: str, y_field: str | None) -> Form:
    """Two fields that are named: a prompt and a completion, text or turns each."""

    def fits(record: Record, complete: bool) -> bool:
        return x_field in record and (not complete or y_field in record)

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        x = value_of(record, x_field, where)
        if not complete or y_field is None:
            y = ""
        else:
            y = value_of(record, y_field, where)
            # the common case, and the fast one; turns may be JSON in a cell
            if type(x) is str and type(y) is str and not (x.startswith("[") or y.startswith("[")):
                return (
                    Conversation(checked_text(x, x_field, where), checked_text(y, y_field, where)),
                )
        if not isinstance(x, str | list | dict):
            checked_text(x, x_field, where)  # which it is not
        return _joined({}, _prompt(x, x_field, where), [(str(y_field), y)], where, complete)

    fields = (x_field,) if y_field is None else (x_field, y_field)
    return Form("fields", " and ".join(fields), fits, lambda *_: fields, read)


def _turns_form(name: str, *fields: str) -> Form:
    """A whole conversation in one of the fields; its last answer is y."""

    def fits(record: Record, complete: bool) -> bool:
        return any(record.get(field) for field in fields)

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        _no_pictures(record, where)
        field = first_of(record, fields) or fields[0]
        turns = turns_of(value_of(record, field, where), field, where)
        if turns[0]["role"] != "system":
            turns = [*system_turn(record, where), *turns]
        return [conversation(turns, tools_of(record, where), field, where, complete)]

    def names(record: Record, complete: bool) -> Sequence[str]:
        return (first_of(record, fields) or fields[0], *BESIDE)

    return Form(name, name, fits, names, read)


def _pair_form(name: str, pairs: Sequence[tuple[str, str]]) -> Form:
    """A prompt and a completion in fields of usual names, the first of `pairs` that fits."""

    def pair_of(record: Record, complete: bool) -> tuple[str, str] | None:
        for prompt, completion in pairs:
            # a text alone is no prompt, and one that is to be summarised is
            alone = not complete and prompt in MAIN_PROMPTS
            if prompt in record and (completion in record or alone):
                return prompt, completion
        return None

    def fits(record: Record, complete: bool) -> bool:
        return pair_of(record, complete) is not None

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        with_prompt = [pair for pair in pairs if pair[0] in record] or pairs
        prompt, completion = pair_of(record, complete) or with_prompt[0]
        asked = _prompt(value_of(record, prompt, where), prompt, where)
        given = [(completion, value_of(record, completion, where))] if complete else []
        return _joined(record, asked, given, where, complete)

    def names(record: Record, complete: bool) -> Sequence[str]:
        pair = pair_of(record, complete) or pairs[0]
        return (*pair, *BESIDE)

    return Form(name, name, fits, names, read)


INPUTS = ("input", "context")
OUTPUTS = ("output", "response", "completion", "answer", "solution", "target")


def _instruction(record: Record, where: str) -> list[Turn] | str:
    """Instruction and input as LLaMA-Factory joins them, after the turns of `history`."""
    asked = checked_text(value_of(record, "instruction", where), "instruction", where)
    name = first_of(record, INPUTS)
    if name is not None and not is_blank(record[name]):
        asked = f"{asked}\n{checked_text(record[name], name, where)}"
    turns = []
    history = record.get("history") or []
    for number, pair in enumerate(parsed(history, "history", where)):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            refuse(where, f"history[{number}]", "must be a pair of an instruction and an answer")
        for role, said in zip(("user", TARGET), pair, strict=True):
            turns.append({"role": role, "content": checked_text(said, f"history[{number}]", where)})
    return [*turns, {"role": "user", "content": asked}] if turns else asked


def _alpaca_names(record: Record, complete: bool) -> Sequence[str]:
    """The fields that are read."""
    output = first_of(record, OUTPUTS) or OUTPUTS[0]
    return (*_prompt_names(record), output)


def _alpaca_fits(record: Record, complete: bool) -> bool:
    """An instruction and its output."""
    if "instruction" not in record:
        return False
    return not complete or any(name in record for name in OUTPUTS)


def _alpaca_read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    """Instruction and input are the prompt."""
    _no_pictures(record, where)
    name = first_of(record, OUTPUTS) or OUTPUTS[0]
    given = [(name, value_of(record, name, where))] if complete else []
    return _joined(record, _instruction(record, where), given, where, complete)


def _main_prompt(record: Record, where: str) -> str | list[Turn] | None:
    """The prompt of a record whose completions have a name of their own; None if there is none."""
    turns = first_of(record, TURNS)
    if turns is not None and first_of(record, MAIN_PROMPTS) is None:
        return turns_of(record[turns], turns, where)
    name = first_of(record, MAIN_PROMPTS)
    if name == "instruction":
        return _instruction(record, where)
    return None if name is None else _prompt(record[name], name, where)


def _prompt_names(record: Record) -> Sequence[str]:
    """The fields that `_main_prompt` reads, and those that are read beside any prompt."""
    name = first_of(record, MAIN_PROMPTS)
    if name is None:
        name = first_of(record, TURNS)
    inputs = (first_of(record, INPUTS), "history") if name == "instruction" else ()
    return [*(part for part in (name, *inputs) if part is not None), *BESIDE]


def _preferred(record: Record) -> tuple[str, str] | None:
    """The names of the two completions of a preference."""
    for chosen, rejected in zip(CHOSEN, REJECTED, strict=True):
        if chosen in record and rejected in record:
            return chosen, rejected
    return None


def _preference_names(record: Record, complete: bool) -> Sequence[str]:
    """The fields that are read."""
    pair = _preferred(record) or ()
    return (*pair, *_prompt_names(record))


def _preference_fits(record: Record, complete: bool) -> bool:
    """A chosen and a rejected completion."""
    return _preferred(record) is not None


def _preference_read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    """Both completions count; without a prompt it is what they begin with."""
    _no_pictures(record, where)
    names = _preferred(record) or (CHOSEN[0], REJECTED[0])
    values = [(name, turns_if_any(value_of(record, name, where))) for name in names]
    prompt = _main_prompt(record, where)
    if prompt is not None:
        return _joined(record, prompt, values, where, complete)
    if all(isinstance(value, str) for _, value in values):
        split, parted = _split_texts(values[0][1], values[1][1], where)
        both = [(name, part) for (name, _), part in zip(values, parted, strict=True)]
        return _joined(record, split, both, where, complete)
    tools = tools_of(record, where)
    conversations = [(name, turns_of(value, name, where)) for name, value in values]
    return [
        conversation(turns, tools, name, where, complete)
        for name, turns in conversations[: 2 if complete else 1]
    ]


def _split_texts(
    chosen: str, rejected: str, where: str
) -> tuple[str | list[Turn], tuple[str, str]]:
    """The prompt that two texts begin with, and the rest of either.

    Conversations in the form of hh-rlhf are parted at the last turn; other texts where they begin
    to differ, at the last white space before.
    """
    heads, answers = zip(*map(_hh_turns, (chosen, rejected)), strict=True)
    if heads[0] and heads[0] == heads[1]:
        return heads[0], answers
    same = next(
        (at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    begin = max((at for at in range(same + 1) if chosen[at - 1 : at].isspace()), default=0)
    prompt = chosen[:begin]
    if not prompt.strip() or chosen == rejected:
        refuse(
            where,
            "chosen",
            "and 'rejected' do not begin alike and then differ, and there is no field 'prompt'; "
            "give the prompt",
        )
    return prompt, (chosen[begin:], rejected[begin:])


def _hh_turns(text: str) -> tuple[list[Turn], str]:
    """The turns before the last one of a conversation, and the last one; empty if it is none."""
    start, *pieces = HH_TURN.split(text)
    if start.strip() or len(pieces) < 4 or pieces[-2] != "Assistant":
        return [], text
    turns = []
    for who, said in zip(pieces[:-2:2], pieces[1:-2:2], strict=True):
        role = "user" if who == "Human" else TARGET
        turns.append({"role": role, "content": said})
    return turns, pieces[-1]


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
    return first if len(first) > 1 else []


def _several_fits(record: Record, complete: bool) -> bool:
    """A prompt and several completions."""
    names = _several_names(record)
    listed = len(names) > 1 or all(isinstance(record[name], list) for name in names)
    return bool(names) and listed and _has_prompt(record)


def _several_read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    """A prompt with each of its completions."""
    _no_pictures(record, where)
    names = _several_names(record) or [SEVERAL[0]]
    values = [value_of(record, name, where) for name in names]
    prompt = _main_prompt(record, where)
    if prompt is None:
        refuse(where, "prompt", "is missing; the prompt of the completions is needed")
    if len(names) == 1:
        name = names[0]
        value = values[0]
        values = [parsed(value, name, where) if isinstance(value, str) else value]
        if not isinstance(values[0], list):
            refuse(where, name, f"must be a list of completions, found {kind_of(value)}")
    return _joined(record, prompt, list(zip(names, values, strict=True)), where, complete)


# In order: a record that fits several is read as the first of them.
FORMS = (
    Form(
        "preference",
        "preference (chosen and rejected)",
        _preference_fits,
        _preference_names,
        _preference_read,
    ),
    Form(
        "completions",
        "several completions",
        _several_fits,
        lambda record, _: (*_several_names(record), *_prompt_names(record)),
        _several_read,
    ),
    _turns_form("messages", "messages"),
    _turns_form("sharegpt", "conversations", "conversation"),
    _pair_form("prompt-completion", (("prompt", "completion"), ("prompt", "response"))),
    Form("alpaca", "alpaca", _alpaca_fits, _alpaca_names, _alpaca_read),
    _pair_form("question-answer", PAIRS),
)
PAIRED = ("prompt-completion", "question-answer")
NAMES = (AUTO, "fields", *(form.name for form in FORMS))


def other_form(record: Record, form: Form, complete: bool) -> Form | None:
    """The form of a record that is not of the form that its file is read as; None where it is, or
    is of none.
    """
    if form.fits(record, complete):
        return None
    others = (_fields_form("x", "y" if complete else None), *FORMS)
    return next((other for other in others if other.fits(record, complete)), None)


# A form that is not known

PROMPTS_ALONE = (
    "prompts alone",
    "draw completions with `twcli sample`, or name them with --y-field",
)
MERE_TEXT = "text without a prompt (language modelling)"
MOST_WORDS = 4  # of a column's name; a cell of text has more

# Fields of forms that hold no prompt and completion, what they are, and what to do.
LOOKS_LIKE = (
    (
        ("input_ids",),
        "tokens",
        "give the texts: x and y are tokenised with the model's own template",
    ),
    (
        ("parent_id", "text", "role"),
        "messages of a tree (OASST)",
        "write each path from its root as messages",
    ),
    (("message_tree_id", "prompt"), "trees (OASST)", "write each path from its root as messages"),
    (("contents",), "turns of the Gemini API", "write them as messages"),
    (("body", "response"), "requests of the OpenAI API", "write each as messages"),
    (
        ("input", "preferred_output"),
        "preferences of the OpenAI API",
        "write them as prompt, chosen and rejected",
    ),
    (("conversation_a", "conversation_b"), "duels of models", "write both as messages"),
    (
        ("text",),
        MERE_TEXT,
        "split each text into x and y, or write it as messages",
    ),
    (("segments",), "segments of text (axolotl's input_output)", "write it as messages"),
    (
        ("prompt", "completions", "labels"),
        "steps with labels (TRL's stepwise supervision)",
        "join the steps to one completion",
    ),
)


def _unknown(record: Record, complete: bool, alone: bool) -> str:
    """What to say of a record of no known form, in one line.

    Args:
        alone: whether it is the only record of its file.
    """
    shown = [" ".join(str(name).split())[:40] for name in list(record)[:12]]
    names = ", ".join(shown) + (", .." if len(record) > 12 else "")
    asked = _has_prompt(_plainly_named(record))
    wrapped = next((k for k, v in record.items() if isinstance(v, list) and _is_records(v)), None)
    wanted = "--x-field and --y-field" if complete else "--x-field"
    known = ((looks, then) for fields, looks, then in LOOKS_LIKE if record.keys() >= set(fields))
    unlike = ("", f"name its fields with {wanted}, or its form with --format")
    looks, then = next(known, unlike) if complete else unlike
    if complete and asked and looks in ("", MERE_TEXT):
        looks, then = PROMPTS_ALONE
    if wrapped is not None and alone and not asked:
        looks = f"one object that holds the records in '{wrapped}'"
        then = "write that list alone"
    elif wrapped is not None and not looks:
        then = f"where '{wrapped}' holds the completions, write a record for each of them"
    elif any(len(str(name).split()) > MOST_WORDS or str(name)[:1].isdigit() for name in record):
        looks = "a table without a header"
        then = "put a line with the columns' names before it"
    looks = f"; it looks like {looks}" if looks else ""
    return f"form not recognised: the fields are {names or 'none'}{looks}; {then}"


def _is_records(value: list[Any]) -> bool:
    """Whether a list of JSON holds records, and not the turns of one conversation."""
    if not value or is_turns(value):
        return False
    return all(isinstance(one, dict) for one in value[:8])
