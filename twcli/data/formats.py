"""The form of a file of records: recognised from its first ones, or given by `--format`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twcli.data.fields import Record, first_of, plain_name, plainly_named
from twcli.data.forms import ANSWERED, FORMS, PAIRED, Form, completion_form, fields_form, turns_form
from twcli.data.record_prompts import has_prompt
from twcli.data.turns import SAID, is_turns, turns_if_any
from twcli.data.unknown_form import unknown
from twcli.errors import UserError

AUTO = "auto"


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
    fields = fields_form(x_field, y_field)
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
        plain = _fitting(known, [plainly_named(record) for _, record in records], complete)
        if plain is None:
            form = _turns_elsewhere(first)
        else:
            form = _of_plain_names(plain)
    if form is not None:
        return _showing_names(form, first, complete)
    where = records[0][0]
    raise UserError(f"{where}: {unknown(first, complete, alone=len(records) == 1)}")


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
    return replace(turns_form("messages", held[0]), shown=f"messages ({held[0]})")


def _showing_names(form: Form, first: Record, complete: bool) -> Form:
    """The form with the names of its two fields, where those vary."""
    if form.name not in PAIRED:
        return form
    asked, *rest = (name for name in form.names(first, complete) if name in first)
    if complete:
        names = f"{asked} and {rest[0]}"
    else:
        names = asked
    return replace(form, shown=f"{form.shown} ({names})")


def _of_plain_names(form: Form) -> Form:
    """The form of records whose fields have its names with capitals or spaces in them."""

    def names(record: Record, complete: bool) -> Sequence[str]:
        """The fields that are read, by their own names."""
        plain = plainly_named(record)
        read = form.names(plain, complete)
        return [name for name in record if plain_name(name) in read]

    return Form(
        form.name,
        form.shown,
        lambda record, complete: form.fits(plainly_named(record), complete),
        names,
        lambda record, where, complete: form.read(plainly_named(record), where, complete),
    )


def _half_named(first: Record, x_field: str, y_field: str | None) -> Form | None:
    """The form where one of the two fields is named and the record does not have the usual other
    one, which is then found by its name; None where both are there, or the other cannot be found.
    """
    if y_field is None:
        return None
    if x_field == "x" and "x" not in first and has_prompt(first):
        return completion_form(y_field)
    if y_field == "y" and "y" not in first:
        for name in (*ANSWERED, "ref", "summary"):
            if name in first:
                return None if name == x_field else fields_form(x_field, name)
    return None


NAMES = (AUTO, "fields", *(form.name for form in FORMS))


def other_form(record: Record, form: Form, complete: bool) -> Form | None:
    """The form of a record that is not of the form that its file is read as; None where it is, or
    is of none.
    """
    if form.fits(record, complete):
        return None
    y_field = "y" if complete else None
    for other in (fields_form("x", y_field), *FORMS):
        if other.fits(record, complete):
            return other
    return None
