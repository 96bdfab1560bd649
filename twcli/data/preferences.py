"""A record with a chosen and a rejected completion, both of which count."""

from __future__ import annotations

import re
from collections.abc import Sequence

from twcli.data.fields import Record, refuse, value_of
from twcli.data.record_prompts import joined, main_prompt, no_pictures, prompt_names
from twcli.data.turns import (
    TARGET,
    Conversation,
    Turn,
    conversation,
    tools_of,
    turns_if_any,
    turns_of,
)

CHOSEN, REJECTED = ("chosen", "chosen_messages"), ("rejected", "rejected_messages")
HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")  # as Anthropic's hh-rlhf writes conversations


def _preferred(record: Record) -> tuple[str, str] | None:
    """The names of the two completions of a preference, (chosen, rejected); None where the record
    has no such pair.
    """
    pairs = zip(CHOSEN, REJECTED, strict=True)
    for chosen, rejected in pairs:
        if chosen in record and rejected in record:
            return chosen, rejected
    return None


def fits(record: Record, complete: bool) -> bool:
    """A chosen and a rejected completion."""
    return _preferred(record) is not None


def names(record: Record, complete: bool) -> Sequence[str]:
    """Names of the fields that are read: the pair, where there is one, and those of the prompt."""
    pair = _preferred(record) or ()
    prompt = prompt_names(record)
    return (*pair, *prompt)


def read(record: Record, where: str, complete: bool) -> Sequence[Conversation]:
    """Both completions count; without a prompt it is what they begin with."""
    no_pictures(record, where)
    both_names = _preferred(record) or (CHOSEN[0], REJECTED[0])
    values = [(name, turns_if_any(value_of(record, name, where))) for name in both_names]
    prompt = main_prompt(record, where)
    if prompt is not None:
        return joined(record, prompt, values, where, complete)
    if all(isinstance(value, str) for _, value in values):
        split, parted = _split_texts(values[0][1], values[1][1], where)
        both = [(name, part) for (name, _), part in zip(values, parted, strict=True)]
        return joined(record, split, both, where, complete)
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
