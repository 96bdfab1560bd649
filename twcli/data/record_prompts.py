"""A record's prompt and its completions, put together to conversations: what all forms share.

The names of fields are those that public data sets have; which of them make a form is `forms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from twcli.data.fields import (
    EmptyText,
    Record,
    checked_text,
    first_of,
    is_blank,
    parsed,
    refuse,
    refuse_empty,
    value_of,
)
from twcli.data.turns import (
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

PICTURES = ("images", "image", "videos", "audios")
TURNS = ("messages", "conversations", "conversation")
TEXTS = ("response", "completion", "text", "content", "answer", "y", "generation", "output")
# Names that mean a prompt where there is no completion beside them.
MAIN_PROMPTS = (
    *("prompt", "instruction", "question", "query", "problem", "x", "input", "inputs"),
    *("mr", "meaning_representation"),
)
BESIDE = ("tools", *SYSTEM)  # read in every form but `fields`
INPUTS = ("input", "context")


def has_prompt(record: Record) -> bool:
    """Whether a field holds what is usually the prompt."""
    return any(record.get(name) is not None for name in (*MAIN_PROMPTS, *TURNS))


def main_prompt(record: Record, where: str) -> str | list[Turn] | None:
    """The prompt of a record whose completions have a name of their own; None if there is none."""
    turns = first_of(record, TURNS)
    if turns is not None and first_of(record, MAIN_PROMPTS) is None:
        return turns_of(record[turns], turns, where)
    name = first_of(record, MAIN_PROMPTS)
    if name == "instruction":
        return instruction(record, where)
    if name is None:
        return None
    return prompt_of(record[name], name, where)


def prompt_names(record: Record) -> Sequence[str]:
    """The fields that `main_prompt` reads, and those that are read beside any prompt."""
    name = first_of(record, MAIN_PROMPTS) or first_of(record, TURNS)
    names = [name]
    if name == "instruction":
        names += [first_of(record, INPUTS), "history"]
    return [*(part for part in names if part is not None), *BESIDE]


def prompt_of(value: Any, field: str, where: str) -> str | list[Turn]:
    """A prompt as text or turns; raises UserError for what is neither."""
    value = turns_if_any(value)
    alone = isinstance(value, list) and len(value) == 1
    if alone and is_turns(value[0]):
        value = value[0]  # a list of conversations, of which there is one
    if _is_column(value):
        number = f"{len(value):,}"
        refuse(
            where,
            field,
            f"holds {number} values, as a file that is written by columns; write one record a "
            "line (in pandas orient='records', lines=True)",
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
    if not isinstance(value, list) or len(value) < 2:
        return False
    return all(isinstance(one, str) for one in value)


def instruction(record: Record, where: str) -> list[Turn] | str:
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
            content = checked_text(said, f"history[{number}]", where)
            turns.append({"role": role, "content": content})
    if not turns:
        return asked
    return [*turns, {"role": "user", "content": asked}]


def no_pictures(record: Record, where: str) -> None:
    """Raises UserError for a record with pictures or sound, which are not read."""
    if (name := next((n for n in PICTURES if record.get(n)), None)) is not None:
        refuse(where, name, "holds pictures or sound, which are not read; take such records out")


def joined(
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
        if prompt and prompt[0]["role"] == "system":
            system = []
    if not complete:
        return [conversation([*system, *turns], tools, "prompt", where, complete)]

    def one_of(field: str, value: Any) -> Conversation:
        if isinstance(value, list):
            answer = turns_of(value, field, where)
        else:
            text = checked_text(value, field, where)
            if plain:
                return Conversation(str(prompt), text)
            turn: Turn = {"role": TARGET, "content": text}
            calls = said_calls(text) if tools else None
            if calls:
                turn = {"role": TARGET, "content": "", "tool_calls": calls}
            answer = [turn]
        # a whole conversation, of which the prompt is a repetition
        whole = answer[0]["role"] != TARGET and len(answer) > 1
        if whole and not _repeats(answer, prompt):
            refuse(where, field, "is a whole conversation, in which the record's prompt is not")
        before = answer if whole else [*turns, *answer]
        if before[0]["role"] != "system":
            before = [*system, *before]
        return conversation(before, tools, field, where, complete)

    each = [_each(field, value, where) for field, value in completions]
    found = []
    empty = None
    for field, value in chain.from_iterable(each):
        try:
            found.append(one_of(field, value))
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
