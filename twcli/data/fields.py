"""A field of a record, read and checked; what is wrong is said in one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from numbers import Number
from typing import Any, NoReturn

from twcli.config.options import check_characters
from twcli.errors import UserError

Record = dict[str, Any]

# Turns in Python's notation, as tables get them that were written without json.dumps. Other lists
# may be what a record is about.
PYTHON = re.compile(r"\[\s*\{\s*'(role|from|content|value)'\s*:")

# Characters without any width, which Python does not count as white space.
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff"


LONGEST_NAME = 40  # of a field, in messages


class EmptyText(UserError):
    """A record has no text where a prompt or completion should be: others may have none either.

    Attributes:
        others: what was read of a record that has other completions.
    """

    others: Sequence[Any] = ()


def refuse_empty(where: str, field: str, found: str = "empty") -> NoReturn:
    """Raises EmptyText of a field."""
    raise EmptyText(
        f"{where}: field '{field}' is {found}; give text, remove the record, or leave all such out "
        "with --empty skip"
    )


def refuse(where: str, field: str, what: str) -> NoReturn:
    """Raises UserError of a field.

    Args:
        where: the record's place: file and line.
        what: what is wrong, to follow the field's name.
    """
    raise UserError(f"{where}: field '{field}' {what}")


def value_of(record: Record, field: str, where: str) -> Any:
    """A field's value. Raises UserError where it is missing."""
    if field not in record:
        names = ", ".join(map(shown_name, record))
        message = f"{where}: field '{field}' is missing; it has: {names or 'nothing'}"
        raise UserError(message[:300])
    return record[field]


def checked_text(value: Any, field: str, where: str) -> str:
    """The value, which is text. Raises UserError where it is none, empty or a list as text."""
    if is_missing(value):
        refuse_empty(where, field, kind_of(value) if value is None else "NaN")
    if not isinstance(value, str):
        then = "; write the number as text" if isinstance(value, Number) else ""
        if isinstance(value, bool):
            then = "; write it as text, such as yes"
        elif isinstance(value, bytes):
            then = "; give the column the type string"
        refuse(where, field, f"must be text, found {kind_of(value)}{then}")
    if value.strip()[:1] in UNSEEN and is_blank(value):
        refuse_empty(where, field)
    if value.startswith("[{'") and PYTHON.match(value):
        refuse(where, field, "is a list in Python's notation; write it with json.dumps")
    check_characters(value, f"{where}: field '{field}'")
    return value


def is_blank(value: Any) -> bool:
    """Whether it is text that is empty, or shows nothing: white space and characters of zero width
    only.
    """
    if not isinstance(value, str):
        return False
    return all(character.isspace() or character in UNSEEN for character in value)


def is_missing(value: Any) -> bool:
    """Whether it is what tables hold in a cell without a value: null, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def kind_of(value: Any) -> str:
    """The value's type, for messages."""
    if value is None:
        return "null"
    return type(value).__name__


def first_of(record: Record, names: Sequence[str]) -> str | None:
    """The first of the names that the record has a value for."""
    for name in names:
        if not is_missing(record.get(name)):
            return name
    return None


def parsed(value: Any, field: str, where: str) -> Any:
    """The value, or what it says where it is JSON in a string, as in cells of CSV."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (RecursionError, ValueError):
        problem = "must be a list, or JSON of one, and is other text"
        if PYTHON.match(value):
            problem += ", Python's notation; write it with json.dumps"
        refuse(where, field, problem)


def plainly_named(record: Record) -> Record:
    """The record with the names of its fields in small letters, as forms have them."""
    plain = {}
    for name, part in record.items():
        plain[plain_name(name)] = part
    return plain


def plain_name(name: Any) -> str:
    """A field's name as forms have it: a byte order mark may precede it."""
    text = str(name).strip()
    text = text.strip(UNSEEN).strip()
    lower = text.lower()
    return lower.replace(" ", "_")


def shown_name(name: Any) -> str:
    """A field's name for messages: in one line, and cut after `LONGEST_NAME` characters, since the
    name comes from the user's file.
    """
    words = str(name).split()
    shown = " ".join(words)
    if len(shown) <= LONGEST_NAME:
        return shown
    return f"{shown[:LONGEST_NAME]}.."
