"""A record of no known form: what to say of it, in one line."""

from __future__ import annotations

from typing import Any

from twcli.data.fields import Record, plainly_named, shown_name
from twcli.data.record_prompts import has_prompt
from twcli.data.turns import is_turns

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
    (("custom_id",), "requests or answers of the OpenAI API", "write each pair as messages"),
    (
        ("choices",),
        "an answer of the OpenAI API",
        "write the prompt and the answer as messages",
    ),
    (("mapping",), "a tree of ChatGPT's export", "write each path from its root as messages"),
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


def unknown(record: Record, complete: bool, alone: bool) -> str:
    """What to say of a record of no known form, in one line.

    Args:
        alone: whether it is the only record of its file.
    """
    shown = [shown_name(name) for name in list(record)[:12]]
    names = ", ".join(shown) + (", .." if len(record) > 12 else "")
    looks, then = _looks_like(record, complete, alone)
    looks = f"; it looks like {looks}" if looks else ""
    return f"format not recognised: the fields are {names or 'none'}{looks}; {then}"


def _looks_like(record: Record, complete: bool, alone: bool) -> tuple[str, str]:
    """What the record seems to be, empty where that cannot be said; and what to do."""
    asked = has_prompt(plainly_named(record))
    looks, then = _by_fields(record, complete)
    if complete and asked and looks in ("", MERE_TEXT):
        looks, then = PROMPTS_ALONE
    if "messages" in record and record["messages"] is None:
        return "a conversation without turns (messages is null)", "remove the record"
    wrapped = [name for name, value in record.items() if _is_records(value)]
    if wrapped and alone and not asked and not looks:
        return f"one object that holds the records in '{wrapped[0]}'", "write that list alone"
    if wrapped and not looks:
        return looks, f"where '{wrapped[0]}' holds the completions, write a record for each of them"
    if not looks and (then_other := _otherwise_held(record, alone)):
        return then_other
    if any(_is_cell(str(name)) for name in record):
        return "a table without a header", "put a line with the columns' names before it"
    return looks, then


def _otherwise_held(record: Record, alone: bool) -> tuple[str, str] | None:
    """As `_looks_like`, of a record whose texts are held in some other way than in fields."""
    values = list(record.values())
    texts = [name for name, value in record.items() if _is_texts(value)]
    if len(texts) == 1:
        return f"turns without roles in '{shown_name(texts[0])}'", "write them as messages"
    if alone and len(values) > 1 and all(isinstance(value, dict) for value in values):
        return "one object that holds the records by name", "write a list of them"
    if len(values) == 1 and isinstance(values[0], dict):
        name = shown_name(next(iter(record)))
        return f"a record inside '{name}'", "write its fields at the top"
    return None


def _is_texts(value: Any) -> bool:
    """Whether it is a list of at least two texts."""
    if not isinstance(value, list) or len(value) < 2:
        return False
    return all(isinstance(one, str) for one in value)


def _by_fields(record: Record, complete: bool) -> tuple[str, str]:
    """What the record looks like and what to do, from the names of its fields alone; see
    `_looks_like`.
    """
    wanted = "--x-field"
    if complete:
        wanted = "--x-field and --y-field"
        for fields, looks, then in LOOKS_LIKE:
            if record.keys() >= set(fields):
                return looks, then
    return "", f"name its fields with {wanted}, or its format with --format"


def _is_cell(name: str) -> bool:
    """Whether the name of a column is rather a cell of the table."""
    if name[:1].isdigit():
        return True
    words = name.split()
    return len(words) > MOST_WORDS


def _is_records(value: Any) -> bool:
    """Whether it is a list of records, and not the turns of one conversation."""
    if not isinstance(value, list) or not value or is_turns(value):
        return False
    return all(isinstance(one, dict) for one in value[:8])
