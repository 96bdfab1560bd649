"""The forms in which public data sets write a prompt and its completions, as x, y and turns.

The form of a file is recognised from its first records, or given by `--format`. What the names
mean is described by the libraries that defined them: TRL ("Dataset formats and types": messages,
prompt/completion, preference), LLaMA-Factory (data/README: Alpaca, ShareGPT) and the OpenAI API
(tool calls, parts of a content).

A turn is a dict in the form that chat templates take: `role`, `content` and whatever else it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, NoReturn

from twcli.config.options import check_characters
from twcli.errors import UserError

AUTO = "auto"
Record = dict[str, Any]
Turn = dict[str, Any]

# What other writers of conversations call the roles of chat templates.
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
CALLS = ("function_call", "tool_call", "function-call")  # an assistant's turn that calls a tool
KNOWN = ("system", "developer", "user", "assistant", "tool", "function")
TARGET = "assistant"
SYSTEM = ("system", "system_prompt")
PICTURES = ("images", "image", "videos", "audios")
TURNS = ("messages", "conversations", "conversation")
SAID = ("content", "value", "text")  # where a turn's text may be
# A list in Python's notation, as tables get it that were written without json.dumps.
PYTHON = re.compile(r"\[\s*\{\s*'")
# Names of a list of completions, and of the text in an element that is an object.
SEVERAL = ("completions", "responses")
TEXTS = ("response", "completion", "text", "content", "answer", "y")
PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
    ("inputs", "targets"),
)
MAIN_PROMPTS = ("prompt", "instruction", "question", "query", "problem", "x")
HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")  # as Anthropic's hh-rlhf writes conversations


class Conversation(NamedTuple):
    """What a record says of one completion; the fields of `dataset.Example` of the same names.

    Attributes:
        unread: turns after the target.
    """

    x: str
    y: str
    messages: tuple[Turn, ...] | None = None
    tools: list[Any] | None = None
    unread: int = 0


@dataclass(frozen=True)
class Form:
    """A way to write a prompt and its completions.

    Attributes:
        name: as `--format` takes it.
        shown: as it is called in a line that is printed.
        fits: whether a record is of this form, and for prompts alone, whether it has a prompt.
        names: the fields that may be read.
        read: the completions of a record, at least one. Takes the record and its place; for
            prompts alone `complete` is False and y is empty.
    """

    name: str
    shown: str
    fits: Callable[[Record, bool], bool]
    names: tuple[str, ...]
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
    fields = _fields_form(x_field, y_field)
    known = {form.name: form for form in (fields, *FORMS)}
    named = x_field != "x" or y_field not in ("y", None)
    if asked not in (AUTO, fields.name) and named:
        raise UserError(
            f"--format {asked}: has field names of its own; leave --x-field and --y-field out"
        )
    if asked != AUTO:
        return known[asked]
    complete = y_field is not None
    if named:
        return fields
    candidates = [form for form in known.values() if form.fits(records[0][1], complete)]
    for form in candidates:
        if all(form.fits(record, complete) for _, record in records):
            return form
    if candidates:
        return candidates[0]
    where, record = records[0]
    raise UserError(f"{where}: {_unknown(record, complete)}")


# Reading a field


def _refuse(where: str, field: str, what: str) -> NoReturn:
    raise UserError(f"{where}: field '{field}' {what}")


def _value(record: Record, field: str, where: str) -> Any:
    if field not in record:
        raise UserError(
            f"{where}: field '{field}' is missing; it has: "
            f"{', '.join(map(str, record)) or 'nothing'}"[:300]
        )
    return record[field]


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        _refuse(where, field, f"must be text, found {_kind(value)}")
    if not value.strip():
        _refuse(where, field, "is empty; give text or remove the record")
    if value.startswith("[{'") and PYTHON.match(value):
        _refuse(where, field, "is a list in Python's notation; write it with json.dumps")
    check_characters(value, f"{where}: field '{field}'")
    return value


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _first(record: Record, names: Sequence[str]) -> str | None:
    """The first of the names that the record has a value for."""
    return next((name for name in names if record.get(name) is not None), None)


def _parsed(value: Any, field: str, where: str) -> Any:
    """The value, or what it says where it is JSON in a string, as in cells of CSV."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (RecursionError, ValueError):
        python = ", Python's notation; write it with json.dumps" if PYTHON.match(value) else ""
        _refuse(where, field, f"must be a list, or JSON of one, and is other text{python}")


def _turns_if_any(value: Any) -> Any:
    """The turns that a text spells as JSON, as in cells of CSV; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:2] == "[{":
        try:
            found = json.loads(value)
        except (RecursionError, ValueError):
            return value
        return found if _is_turns(found) else value
    return value


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_turn(turn) for turn in value)


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


# Turns


def turns_of(value: Any, field: str, where: str) -> list[Turn]:
    """A list of turns in the form of chat templates.

    Roles get the names that templates use, a content of parts is joined, arguments of tool calls
    that are JSON in a string become objects, as servers of the OpenAI API do before they render;
    keys without a value, which columns of a table leave, are taken away.

    Raises:
        UserError: names the place and the turn.
    """
    value = _parsed(value, field, where)
    if isinstance(value, dict):
        value = _rows_of(value)
    if not isinstance(value, list):
        _refuse(where, field, f"must be a list of turns, found {_kind(value)}")
    if not value:
        _refuse(where, field, "is an empty list; remove the record")
    return [_turn(turn, f"{field}[{number}]", where) for number, turn in enumerate(value)]


def _rows_of(columns: dict[str, Any]) -> Any:
    """Turns as rows, where they are columns of equal length: {"role": [..], "content": [..]}, as
    older versions of `datasets` give them; else as they are.
    """
    lists = all(isinstance(column, list) for column in columns.values())
    if not lists or not {"role", "from"} & columns.keys():
        return columns
    if len({len(column) for column in columns.values()}) != 1:
        return columns
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _role(name: str) -> str:
    """The name that chat templates have for a role, which most of them compare letter by letter."""
    lower = name.strip().lower()
    return ROLES.get(lower, lower if lower in (*KNOWN, *CALLS) else name)


def _turn(value: Any, field: str, where: str) -> Turn:
    if not isinstance(value, dict):
        _refuse(where, field, f"must be a turn with 'role' and 'content', found {_kind(value)}")
    if "from" in value and "role" not in value:
        return _sharegpt_turn(value, field, where)
    role = value.get("role")
    if not isinstance(role, str) or not role:
        _refuse(where, f"{field}.role", f"must be text such as user, found {_kind(role)}")
    name = _first(value, SAID) or SAID[0]
    turn = {key: part for key, part in value.items() if part is not None and key != name}
    turn["role"] = _role(role)
    turn["content"] = _content(value.get(name), turn, f"{field}.{name}", where)
    if "tool_calls" in turn:
        turn["tool_calls"] = _calls(turn["tool_calls"], f"{field}.tool_calls", where)
        if not turn["tool_calls"]:
            del turn["tool_calls"]
    if turn["content"] is None and not any(
        key in turn for key in ("tool_calls", "function_call", "reasoning_content")
    ):
        _refuse(where, f"{field}.content", "must be text, found null")
    return turn


def _sharegpt_turn(value: Turn, field: str, where: str) -> Turn:
    speaker = value["from"]
    role = _role(speaker) if isinstance(speaker, str) else None
    if role not in (*KNOWN, *CALLS):
        _refuse(
            where,
            f"{field}.from",
            f"is {json.dumps(speaker)[:40]}; known are {', '.join((*KNOWN, *ROLES, *CALLS))}",
        )
    name = next((name for name in ("value", *SAID) if value.get(name) is not None), "value")
    rest = {k: v for k, v in value.items() if k not in ("from", name) and v is not None}
    said = value.get(name)
    call = _said_call(said) if role in (*CALLS, "function") else None
    if call is not None:
        return {"role": TARGET, "content": "", "tool_calls": call, **rest}
    role = {"function": "tool"}.get(role, TARGET if role in CALLS else role)
    turn = {"role": role, **rest}
    return {"role": role, "content": _content(said, turn, f"{field}.{name}", where), **rest}


def _said_call(said: Any) -> list[Any] | None:
    """The calls of tools that a text spells as JSON with name and arguments; None if it is none."""
    try:
        calls = json.loads(said)
    except (TypeError, ValueError):
        return None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(
        isinstance(c, dict) and {"name", "arguments"} <= c.keys() for c in calls
    ):
        return None
    return [{"type": "function", "function": call} for call in calls]


def _content(value: Any, turn: Turn, field: str, where: str) -> Any:
    """A turn's content: text; None where a call stands for it; a tool's result as it is."""
    if isinstance(value, str):
        check_characters(value, f"{where}: field '{field}'")
        return value
    if value is None:
        if turn["role"] == TARGET:
            return None
    elif isinstance(value, list):
        return "".join(
            _part(part, f"{field}[{number}]", where) for number, part in enumerate(value)
        )
    elif turn["role"] == "tool":
        return value
    _refuse(where, field, f"must be text, found {_kind(value)}")


def _part(value: Any, field: str, where: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        kind = value.get("type") if isinstance(value, dict) else None
        _refuse(
            where,
            field,
            f"is of type {kind or _kind(value)}; only parts of text are read, so take such records "
            "out",
        )
    check_characters(text, f"{where}: field '{field}'")
    return text


def _calls(value: Any, field: str, where: str) -> list[Any]:
    value = _parsed(value, field, where)
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        _refuse(where, field, f"must be a list of calls, found {_kind(value)}")
    return [_call(call) for call in value]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        return {**call, "function": _call(function)}
    try:
        arguments = json.loads(call["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return {**call, "arguments": arguments} if isinstance(arguments, dict) else call


def _tools(record: Record, where: str) -> list[Any] | None:
    value = record.get("tools")
    if value is None or _blank(value):
        return None
    value = _parsed(value, "tools", where)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        _refuse(where, "tools", f"must be a list of objects, found {_kind(value)}")
    return value or None


def _system(record: Record, where: str) -> list[Turn]:
    """The record's own field for the system prompt, as a turn."""
    name = _first(record, SYSTEM)
    if name is None or _blank(record[name]):
        return []
    return [{"role": "system", "content": _text(record[name], name, where)}]


def text_of(turn: Turn) -> str:
    """All that a turn says, as text to read: reasoning, content, calls of tools."""
    content = turn["content"]
    said = [
        turn.get("reasoning_content"),
        content if content is None or isinstance(content, str) else _json(content),
        *(_json(call.get("function", call)) for call in turn.get("tool_calls", ())),
        _json(turn["function_call"]) if "function_call" in turn else None,
    ]
    return "\n\n".join(part for part in said if isinstance(part, str) and part)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def prompt_text(turns: Sequence[Turn], tools: list[Any] | None) -> str:
    """A conversation's prompt as text to read: one question by itself, else each turn with its
    role.
    """
    if len(turns) == 1 and turns[0]["role"] == "user" and not tools:
        return text_of(turns[0])
    offered = [f"tools: {_json(tools)}"] if tools else []
    return "\n\n".join([*offered, *(f"{turn['role']}: {text_of(turn)}" for turn in turns)])


def conversation(
    turns: list[Turn], tools: list[Any] | None, field: str, where: str, complete: bool
) -> Conversation:
    """x, y and messages of a conversation: the assistant's last turn is the target.

    Raises:
        UserError: no turn of the assistant, none before it, or an empty one.
    """
    said = [number for number, turn in enumerate(turns) if turn["role"] == TARGET]
    if not complete:
        ends = bool(said) and said[-1] == len(turns) - 1 and len(turns) > 1
        prompt = turns[:-1] if ends else turns
        return Conversation(prompt_text(prompt, tools), "", tuple(prompt), tools)
    if not said:
        roles = ", ".join(turn["role"] for turn in turns)[:60]
        _refuse(where, field, f"has no turn of the assistant, which is what is learned: {roles}")
    last = said[-1]
    if not last:
        _refuse(where, field, "has no turn before the assistant's, so there is no prompt")
    y = text_of(turns[last])
    if not y.strip():
        _refuse(where, f"{field}[{last}].content", "is empty; give text or remove the record")
    x = prompt_text(turns[:last], tools)
    if not x.strip():
        _refuse(where, field, "has no text before the assistant's last turn")
    return Conversation(x, y, tuple(turns[: last + 1]), tools, len(turns) - last - 1)


def earlier_answers(whole: Conversation) -> list[Conversation]:
    """The turns of the assistant before the target of a conversation, each as a target; those that
    open it or say nothing are left out.
    """
    turns = list(whole.messages or ())[:-1]
    return [
        Conversation(
            prompt_text(turns[:number], whole.tools),
            text_of(turn),
            tuple(turns[: number + 1]),
            whole.tools,
        )
        for number, turn in enumerate(turns)
        if number and turn["role"] == TARGET and text_of(turn).strip()
    ]


# Forms


def _no_pictures(record: Record, where: str) -> None:
    if (name := next((n for n in PICTURES if record.get(n)), None)) is not None:
        _refuse(where, name, "holds pictures or sound, which are not read; take such records out")


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
    """
    tools, system = _tools(record, where), _system(record, where)
    plain = isinstance(prompt, str) and not system and not tools
    if plain and not complete:
        return [Conversation(str(prompt), "")]
    if isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
    else:
        turns, system = prompt, system if not prompt or prompt[0]["role"] != "system" else []
    if not complete:
        return [conversation([*system, *turns], tools, "prompt", where, complete)]
    found = []
    for field, value in chain.from_iterable(_each(f, v, where) for f, v in completions):
        if plain and isinstance(value, str):
            found.append(Conversation(str(prompt), _text(value, field, where)))
            continue
        answer = (
            [{"role": TARGET, "content": _text(value, field, where)}]
            if isinstance(value, str)
            else turns_of(value, field, where)
        )
        # a whole conversation, of which the prompt is a repetition
        whole = answer[0]["role"] != TARGET and len(answer) > 1
        if whole and not _repeats(answer, prompt):
            _refuse(where, field, "is a whole conversation, in which the record's prompt is not")
        before = answer if whole else [*turns, *answer]
        if before[0]["role"] != "system":
            before = [*system, *before]
        found.append(conversation(before, tools, field, where, complete))
    return found


def _repeats(turns: list[Turn], prompt: str | list[Turn]) -> bool:
    if isinstance(prompt, str):
        return any(prompt.strip() in text_of(turn) for turn in turns)
    return turns[: len(prompt)] == prompt


def _each(field: str, value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The completions in a field: one, or a list of several."""
    value = _turns_if_any(value)
    if isinstance(value, dict) and not _is_turn(value):
        name = _first(value, TEXTS)
        if name is None:
            _refuse(where, field, f"has none of {', '.join(TEXTS)}")
        yield from _each(f"{field}.{name}", value[name], where)
    elif isinstance(value, dict):
        yield field, [value]
    elif isinstance(value, list) and not _is_turns(value):
        if not value:
            _refuse(where, field, "is an empty list; give a completion or remove the record")
        for number, one in enumerate(value):
            yield from _each(f"{field}[{number}]", one, where)
    elif isinstance(value, str | list):
        yield field, value
    else:
        _refuse(where, field, f"must be text, found {_kind(value)}")


def _prompt(value: Any, field: str, where: str) -> str | list[Turn]:
    value = _turns_if_any(value)
    if _is_column(value):
        _refuse(
            where,
            field,
            f"holds {len(value):,} values, as a file that is written by columns; write one record "
            "a line (in pandas orient='records', lines=True)",
        )
    if isinstance(value, dict):
        value = [value]
    return turns_of(value, field, where) if isinstance(value, list) else _text(value, field, where)


def _is_column(value: Any) -> bool:
    """Whether a prompt is many texts: the column of a table, as a list or by row number."""
    if isinstance(value, dict):
        return bool(value) and all(name.isdecimal() for name in value)
    return isinstance(value, list) and len(value) > 1 and all(isinstance(v, str) for v in value)


def _fields_form(x_field: str, y_field: str | None) -> Form:
    def fits(record: Record, complete: bool) -> bool:
        return x_field in record and (not complete or y_field in record)

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        x = _value(record, x_field, where)
        if not complete or y_field is None:
            y = ""
        else:
            y = _value(record, y_field, where)
            # the common case, and the fast one; turns may be JSON in a cell
            if type(x) is str and type(y) is str and not (x.startswith("[") or y.startswith("[")):
                return (Conversation(_text(x, x_field, where), _text(y, y_field, where)),)
        if x is None or not isinstance(x, str | list | dict):
            _refuse(where, x_field, f"must be text, found {_kind(x)}")
        return _joined({}, _prompt(x, x_field, where), [(str(y_field), y)], where, complete)

    names = (x_field,) if y_field is None else (x_field, y_field)
    shown = " and ".join(names)
    return Form("fields", shown, fits, names, read)


def _turns_form(name: str, *fields: str) -> Form:
    def fits(record: Record, complete: bool) -> bool:
        return any(record.get(field) for field in fields)

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        _no_pictures(record, where)
        field = _first(record, fields) or fields[0]
        turns = turns_of(_value(record, field, where), field, where)
        if turns[0]["role"] != "system":
            turns = [*_system(record, where), *turns]
        return [conversation(turns, _tools(record, where), field, where, complete)]

    return Form(name, name, fits, (*fields, "tools", *SYSTEM), read)


def _pair_form(name: str, pairs: Sequence[tuple[str, str]]) -> Form:
    def pair_of(record: Record, complete: bool) -> tuple[str, str] | None:
        return next(
            ((p, c) for p, c in pairs if p in record and (not complete or c in record)), None
        )

    def fits(record: Record, complete: bool) -> bool:
        return pair_of(record, complete) is not None

    def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
        prompt, completion = pair_of(record, complete) or next(
            ((p, c) for p, c in pairs if p in record), pairs[0]
        )
        asked = _prompt(_value(record, prompt, where), prompt, where)
        given = [(completion, _value(record, completion, where))] if complete else []
        return _joined(record, asked, given, where, complete)

    return Form(name, name, fits, (*dict.fromkeys(chain(*pairs)), "tools", *SYSTEM), read)


INSTRUCTION = ("instruction",)
INPUTS = ("input", "context")
OUTPUTS = ("output", "response")


def _instruction(record: Record, where: str) -> list[Turn] | str:
    """Instruction and input as LLaMA-Factory joins them, after the turns of `history`."""
    asked = _text(_value(record, "instruction", where), "instruction", where)
    name = _first(record, INPUTS)
    if name is not None and not _blank(record[name]):
        asked = f"{asked}\n{_text(record[name], name, where)}"
    turns = []
    history = record.get("history") or []
    for number, pair in enumerate(_parsed(history, "history", where)):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            _refuse(where, f"history[{number}]", "must be a pair of an instruction and an answer")
        for role, said in zip(("user", TARGET), pair, strict=True):
            turns.append({"role": role, "content": _text(said, f"history[{number}]", where)})
    return [*turns, {"role": "user", "content": asked}] if turns else asked


def _alpaca_fits(record: Record, complete: bool) -> bool:
    return "instruction" in record and (not complete or any(name in record for name in OUTPUTS))


def _alpaca_read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    _no_pictures(record, where)
    name = _first(record, OUTPUTS) or OUTPUTS[0]
    given = [(name, _value(record, name, where))] if complete else []
    return _joined(record, _instruction(record, where), given, where, complete)


def _main_prompt(record: Record, where: str) -> str | list[Turn] | None:
    """The prompt of a record whose completions have a name of their own; None if there is none."""
    turns = _first(record, TURNS)
    if turns is not None and _first(record, MAIN_PROMPTS) is None:
        return turns_of(record[turns], turns, where)
    name = _first(record, MAIN_PROMPTS)
    if name == "instruction":
        return _instruction(record, where)
    return None if name is None else _prompt(record[name], name, where)


def _preference_fits(record: Record, complete: bool) -> bool:
    return "chosen" in record and "rejected" in record


def _preference_read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    _no_pictures(record, where)
    names = "chosen", "rejected"
    values = [(name, _turns_if_any(_value(record, name, where))) for name in names]
    prompt = _main_prompt(record, where)
    if prompt is not None:
        return _joined(record, prompt, values, where, complete)
    if all(isinstance(value, str) for _, value in values):
        split, parted = _split_texts(values[0][1], values[1][1], where)
        both = [(name, part) for (name, _), part in zip(values, parted, strict=True)]
        return _joined(record, split, both, where, complete)
    tools = _tools(record, where)
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
        _refuse(
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
    turns = [
        {"role": "user" if who == "Human" else TARGET, "content": said}
        for who, said in zip(pieces[:-2:2], pieces[1:-2:2], strict=True)
    ]
    return turns, pieces[-1]


def _several_fits(record: Record, complete: bool) -> bool:
    name = _first(record, SEVERAL)
    prompts = (*MAIN_PROMPTS, *TURNS)
    return name is not None and isinstance(record[name], list) and any(p in record for p in prompts)


def _several_read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    _no_pictures(record, where)
    name = _first(record, SEVERAL) or SEVERAL[0]
    value = _value(record, name, where)
    prompt = _main_prompt(record, where)
    if prompt is None:
        _refuse(where, "prompt", "is missing; the prompt of the completions is needed")
    value = _parsed(value, name, where) if isinstance(value, str) else value
    if not isinstance(value, list):
        _refuse(where, name, f"must be a list of completions, found {_kind(value)}")
    return _joined(record, prompt, [(name, value)], where, complete)


COMMON = ("tools", *SYSTEM, *TURNS, *MAIN_PROMPTS, *INPUTS, "history")
# In order: a record that fits several is read as the first of them.
FORMS = (
    Form(
        "preference",
        "preference (chosen and rejected)",
        _preference_fits,
        ("chosen", "rejected", *COMMON),
        _preference_read,
    ),
    Form("completions", "several completions", _several_fits, (*SEVERAL, *COMMON), _several_read),
    _turns_form("messages", "messages"),
    _turns_form("sharegpt", "conversations", "conversation"),
    _pair_form("prompt-completion", (("prompt", "completion"), ("prompt", "response"))),
    Form(
        "alpaca",
        "alpaca",
        _alpaca_fits,
        (*INSTRUCTION, *INPUTS, *OUTPUTS, "history", "tools", *SYSTEM),
        _alpaca_read,
    ),
    _pair_form("question-answer", PAIRS),
)
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

# Fields of forms that hold no prompt and completion, what they are, and what to do.
LOOKS_LIKE = (
    (
        ("input_ids",),
        "tokens",
        "give the texts: x and y are tokenised with the model's own template",
    ),
    (
        ("text",),
        "text without a prompt (language modelling)",
        "split each text into x and y, or write it as messages",
    ),
    (
        ("prompt",),
        "prompts alone",
        "draw completions with `twcli sample`, or name them with --y-field",
    ),
    (("x",), "prompts alone", "draw completions with `twcli sample`, or name them with --y-field"),
    (("segments",), "segments of text (axolotl's input_output)", "write it as messages"),
    (
        ("prompt", "completions", "labels"),
        "steps with labels (TRL's stepwise supervision)",
        "join the steps to one completion",
    ),
)


def _unknown(record: Record, complete: bool) -> str:
    """What to say of a record of no known form, in one line."""
    names = ", ".join(map(str, list(record)[:12])) + (", .." if len(record) > 12 else "")
    wrapped = next((k for k, v in record.items() if isinstance(v, list) and _is_records(v)), None)
    wanted = "--x-field and --y-field" if complete else "--x-field"
    looks, then = next(
        (
            (looks, then)
            for fields, looks, then in LOOKS_LIKE
            if all(field in record for field in fields) and complete
        ),
        ("", f"name its fields with {wanted}, or its form with --format"),
    )
    if wrapped is not None:
        looks, then = f"one object that holds the records in '{wrapped}'", "write that list alone"
    looks = f"; it looks like {looks}" if looks else ""
    return f"form not recognised: the fields are {names or 'none'}{looks}; {then}"


def _is_records(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(one, dict) for one in value[:8]) and not _is_turns(value)
