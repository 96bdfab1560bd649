"""A record of no known form: what to say of it, in one line."""

from __future__ import annotations

from typing import Any

from twcli.data.fields import Record, plainly_named
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
    shown = [" ".join(str(name).split())[:40] for name in list(record)[:12]]
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
    wrapped = [name for name, value in record.items() if _is_records(value)]
    if wrapped and alone and not asked:
        return f"one object that holds the records in '{wrapped[0]}'", "write that list alone"
    if wrapped and not looks:
        return looks, f"where '{wrapped[0]}' holds the completions, write a record for each of them"
    if any(_is_cell(str(name)) for name in record):
        return "a table without a header", "put a line with the columns' names before it"
    return looks, then


def _by_fields(record: Record, complete: bool) -> tuple[str, str]:
    """As `_looks_like`, from the names of the fields alone."""
    if complete:
        for fields, looks, then in LOOKS_LIKE:
            if record.keys() >= set(fields):
                return looks, then
    wanted = "--x-field and --y-field" if complete else "--x-field"
    return "", f"name its fields with {wanted}, or its format with --format"


def _is_cell(name: str) -> bool:
    """Whether the name of a column is rather a cell of the table."""
    return len(name.split()) > MOST_WORDS or name[:1].isdigit()


def _is_records(value: Any) -> bool:
    """Whether it is a list of records, and not the turns of one conversation."""
    if not isinstance(value, list) or not value or is_turns(value):
        return False
    return all(isinstance(one, dict) for one in value[:8])
