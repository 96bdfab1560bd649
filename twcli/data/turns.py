"""Turns of conversations as public data sets write them, in the form that chat templates take.

A turn is a dict in that form: `role`, `content` and whatever else it has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from twcli.config.options import check_characters
from twcli.data.fields import (
    Record,
    checked_text,
    first_of,
    is_blank,
    kind_of,
    parsed,
    refuse,
    refuse_empty,
)

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
SAID = ("content", "value", "text")  # where a turn's text may be
# Parts of Anthropic's messages, and where chat templates look for what they say.
ELSEWHERE = {
    "thinking": "write it as the turn's reasoning_content",
    "tool_use": "write it as the turn's tool_calls",
    "tool_result": "write it as a turn of the role tool",
}


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


def turns_of(value: Any, field: str, where: str) -> list[Turn]:
    """A list of turns in the form of chat templates.

    Roles get the names that templates use, a content of parts is joined, arguments of tool calls
    that are JSON in a string become objects, as servers of the OpenAI API do before they render;
    keys without a value, which columns of a table leave, are taken away.

    Raises:
        UserError: names the place and the turn.
    """
    value = parsed(value, field, where)
    if isinstance(value, dict):
        value = _rows_of(value)
    if not isinstance(value, list):
        refuse(where, field, f"must be a list of turns, found {kind_of(value)}")
    if not value:
        refuse(where, field, "is an empty list; remove the record")
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
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, cells, strict=True)) for cells in rows]


def _role(name: str) -> str:
    """The name that chat templates have for a role, which most of them compare letter by letter."""
    lower = name.strip().lower()
    if lower in ROLES:
        return ROLES[lower]
    if lower in (*KNOWN, *CALLS):
        return lower
    return name


def _turn(value: Any, field: str, where: str) -> Turn:
    if not isinstance(value, dict):
        refuse(where, field, f"must be a turn with 'role' and 'content', found {kind_of(value)}")
    if "from" in value and "role" not in value:
        return _sharegpt_turn(value, field, where)
    role = value.get("role")
    if "role" not in value:
        keys = ", ".join(map(str, value))[:60] or "nothing"
        refuse(where, field, f"must be a turn with 'role' and 'content'; it has: {keys}")
    if not isinstance(role, str) or not role:
        refuse(where, f"{field}.role", f"must be text such as user, found {kind_of(role)}")
    if _role(role) in (*CALLS, "function"):
        rest = {key: part for key, part in value.items() if key != "role"}
        return _sharegpt_turn({**rest, "from": role}, field, where)
    name = first_of(value, SAID) or SAID[0]
    turn = {key: part for key, part in value.items() if part is not None and key != name}
    turn["role"] = _role(role)
    said = _apart(value.get(name), turn)
    turn["content"] = _content(said, turn, f"{field}.{name}", where)
    if "function_call" in turn:  # how the OpenAI API wrote a single call at first
        call = turn.pop("function_call")
        if isinstance(call, list):
            turn["tool_calls"] = call
        else:
            turn["tool_calls"] = [_parsed_call(call, field, where)]
    if "tool_calls" in turn:
        turn["tool_calls"] = _calls(turn["tool_calls"], f"{field}.tool_calls", where)
        if not turn["tool_calls"]:
            del turn["tool_calls"]
    if turn["content"] is None and not any(
        key in turn for key in ("tool_calls", "reasoning_content")
    ):
        refuse_empty(where, f"{field}.content", "null")
    return turn


def _apart(content: Any, turn: Turn) -> Any:
    """A content without its parts that are reasoning or calls of tools, which the turn gets."""
    if not isinstance(content, list):
        return content
    rest = []
    reasoning = []
    calls = []
    for part in content:
        if isinstance(part, dict):
            kind = part.get("type")
        else:
            kind = None
        if kind in ("reasoning", "tool_call"):
            said = part.get("value", part.get("text"))
        else:
            said = None
        called = said_calls(said) if kind == "tool_call" else None
        if called:
            calls += called
        elif kind == "reasoning" and isinstance(said, str):
            reasoning.append(said)
        else:
            rest.append(part)
    if reasoning:
        turn["reasoning_content"] = "\n".join(reasoning)
    if calls:
        turn["tool_calls"] = calls
    if rest or not calls:
        return rest
    return ""


def _parsed_call(value: Any, field: str, where: str) -> dict[str, Any]:
    """A single call, as the OpenAI API wrote it at first, in the form of chat templates."""
    place = f"{field}.function_call"
    value = parsed(value, place, where)
    if not isinstance(value, dict) or "name" not in value:
        found = kind_of(value)
        refuse(where, place, f"must be a call with 'name' and 'arguments', found {found}")
    return {"type": "function", "function": value}


def _sharegpt_turn(value: Turn, field: str, where: str) -> Turn:
    speaker = value["from"]
    role = _role(speaker) if isinstance(speaker, str) else None
    if role not in (*KNOWN, *CALLS):
        refuse(
            where,
            f"{field}.from",
            f"is {json.dumps(speaker)[:40]}; known are {', '.join((*KNOWN, *ROLES, *CALLS))}",
        )
    name = next((name for name in ("value", *SAID) if value.get(name) is not None), "value")
    rest = {k: v for k, v in value.items() if k not in ("from", name) and v is not None}
    said = value.get(name)
    if role in (*CALLS, "function"):
        calls = said_calls(said)
    else:
        calls = None
    if calls is not None:
        return {"role": TARGET, "content": "", "tool_calls": calls, **rest}
    role = {"function": "tool"}.get(role, TARGET if role in CALLS else role)
    turn = {"role": role, **rest}
    return {"role": role, "content": _content(said, turn, f"{field}.{name}", where), **rest}


def said_calls(said: Any) -> list[Any] | None:
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
    return [{"type": "function", "function": _call(call)} for call in calls]


def _content(value: Any, turn: Turn, field: str, where: str) -> Any:
    """A turn's content: text; None where a call stands for it; a tool's result as it is."""
    if isinstance(value, str):
        check_characters(value, f"{where}: field '{field}'")
        return value
    if value is None:
        if turn["role"] == TARGET:
            return None
    elif isinstance(value, dict) and (parts := _as_parts(value)) and turn["role"] != "tool":
        return _content(parts, turn, field, where)
    elif isinstance(value, list):
        return "".join(
            _part(part, f"{field}[{number}]", where) for number, part in enumerate(value)
        )
    elif turn["role"] == "tool":
        return value
    then = '; write "" where it is empty' if value is None else ""
    refuse(where, field, f"must be text, found {kind_of(value)}{then}")


def _as_parts(value: dict[str, Any]) -> list[Any] | None:
    """A content that is one part, or the object with `parts` that ChatGPT exports; None if none."""
    if value.get("type") == "text":
        return [value]
    if value.get("content_type") != "text":
        return None
    parts = value.get("parts")
    if isinstance(parts, list):
        return parts
    return None


def _part(value: Any, field: str, where: str) -> str:
    text = value
    if isinstance(value, dict):
        if value.get("type") == "text":
            text = value.get("value")
        else:
            text = None
        text = value.get("text", text)
        if isinstance(text, dict):  # of OpenAI's assistants
            text = text.get("value")
    if not isinstance(text, str):
        if isinstance(value, dict):
            kind = value.get("type")
        else:
            kind = None
        kind = kind or kind_of(value)
        then = ELSEWHERE.get(kind, "take such records out")
        refuse(where, field, f"is of type {kind}; only parts of text are read, so {then}")
    check_characters(text, f"{where}: field '{field}'")
    return text


def _calls(value: Any, field: str, where: str) -> list[Any]:
    """Calls of tools, also as JSON in a string; raises UserError for anything else."""
    value = parsed(value, field, where)
    several = isinstance(value, list)
    if not several or not all(isinstance(call, dict) for call in value):
        found = kind_of(value)
        refuse(where, field, f"must be a list of calls, found {found}")
    return [_call(call) for call in value]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object, where they are JSON in a string."""
    function = call.get("function")
    if isinstance(function, dict):
        return {**call, "function": _call(function)}
    try:
        arguments = json.loads(call["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    if isinstance(arguments, dict):
        return {**call, "arguments": arguments}
    return call


def tools_of(record: Record, where: str) -> list[Any] | None:
    """The tools that a record offers. Raises UserError where they are no list of objects."""
    value = record.get("tools")
    if value is None or is_blank(value):
        return None
    value = parsed(value, "tools", where)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        refuse(where, "tools", f"must be a list of objects, found {kind_of(value)}")
    return value or None


def system_turn(record: Record, where: str) -> list[Turn]:
    """The record's own field for the system prompt, as a turn."""
    name = first_of(record, SYSTEM)
    if name is None or is_blank(record[name]):
        return []
    return [{"role": "system", "content": checked_text(record[name], name, where)}]


def text_of(turn: Turn) -> str:
    """All that a turn says, as text to read: reasoning, content, calls of tools."""
    content = turn["content"]
    said = [
        turn.get("reasoning_content"),
        content if content is None or isinstance(content, str) else _json(content),
        *(_json(call.get("function", call)) for call in turn.get("tool_calls", ())),
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
    parts = []
    if tools:
        parts.append(f"tools: {_json(tools)}")
    for turn in turns:
        role = turn["role"]
        text = text_of(turn)
        parts.append(f"{role}: {text}")
    return "\n\n".join(parts)


def conversation(
    turns: list[Turn], tools: list[Any] | None, field: str, where: str, complete: bool
) -> Conversation:
    """x, y and messages of a conversation: the assistant's last turn is the target, or the last
    that is not marked as context.

    Raises:
        UserError: no turn of the assistant, none before it, or an empty one.
    """
    said = [number for number, turn in enumerate(turns) if turn["role"] == TARGET]
    learned = [number for number in said if _is_learned(turns[number])]
    if not complete:
        ends = bool(said) and said[-1] == len(turns) - 1 and len(turns) > 1
        prompt = turns[:-1] if ends else turns
        return Conversation(prompt_text(prompt, tools), "", tuple(prompt), tools)
    if not said:
        roles = ", ".join(turn["role"] for turn in turns)[:60]
        refuse(where, field, f"has no turn of the assistant, which is what is learned: {roles}")
    if not learned:
        refuse(where, field, "has no turn to learn: those of the assistant have weight 0")
    last = learned[-1]
    if not last:
        refuse(where, field, "has no turn before the assistant's, so there is no prompt")
    y = text_of(turns[last])
    if is_blank(y):
        refuse_empty(where, f"{field}[{last}].content")
    x = prompt_text(turns[:last], tools)
    if is_blank(x):
        refuse(where, field, "has no text before the assistant's last turn")
    return Conversation(x, y, tuple(turns[: last + 1]), tools, len(turns) - last - 1)


def _is_learned(turn: Turn) -> bool:
    """Whether a turn of the assistant may be a target: the OpenAI API has weight 0, axolotl train
    false for those that are context alone.
    """
    return turn.get("weight") not in (0, "0") and turn.get("train") is not False


def earlier_answers(whole: Conversation) -> list[Conversation]:
    """The turns of the assistant before the target of a conversation, each as a target; those that
    open it, say nothing or are marked as context are left out.
    """
    turns = list(whole.messages or ())[:-1]
    found = []
    for number, turn in enumerate(turns):
        said = text_of(turn)
        if number == 0 or turn["role"] != TARGET or not _is_learned(turn) or is_blank(said):
            continue
        prompt = prompt_text(turns[:number], whole.tools)
        found.append(Conversation(prompt, said, tuple(turns[: number + 1]), whole.tools))
    return found


def turns_if_any(value: Any) -> Any:
    """The turns that a text spells as JSON, as in cells of CSV; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        found = json.loads(value)
    except (RecursionError, ValueError):
        return value
    if is_turns(found):
        return found
    return value


def is_turns(value: Any) -> bool:
    """Whether it is a list of turns with at least one of them, each a mapping that `is_turn`
    accepts.
    """
    if not isinstance(value, list) or not value:
        return False
    return all(is_turn(turn) for turn in value)


def is_turn(value: Any) -> bool:
    """Whether it is one turn of a conversation, by its keys: `role` in chat templates' form, `from`
    in ShareGPT's.
    """
    return isinstance(value, dict) and ("role" in value or "from" in value)
