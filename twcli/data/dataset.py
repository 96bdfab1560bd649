"""The records of `--data` as `Example`s, read as a stream.

`files` reads the files, `formats` the forms that records have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from twcli.config.inputs import EMPTY
from twcli.config.options import check_characters
from twcli.data.chat import prompt_turns
from twcli.data.example import Example
from twcli.data.fields import EmptyText, Record, shown_name
from twcli.data.files import Source, sources_of
from twcli.data.formats import AUTO, form_of, other_form
from twcli.data.forms import Form
from twcli.data.placed import Reading
from twcli.data.turns import earlier_answers
from twcli.errors import UserError
from twcli.storage.disk_array import DiskArray

DIGEST_BYTES = 16
FIRST = 16  # records by which a form is recognised
NAMED = ("id", "answer")  # fields that no form reads and that nobody misses
SHOWN_FIELDS = 6
REPEATED = 20  # characters of a prompt; a shorter one may begin a completion by intention
SHOWN_PLACES = 20


def read_examples(path: str, **fields: Any) -> list[Example]:
    """All records of `stream_examples` as a list, for callers that need them more than once; takes
    the same arguments and raises the same errors.
    """
    return list(stream_examples(path, **fields))


def stream_examples(
    path: str,
    *,
    x_field: str = "x",
    y_field: str | None = "y",
    strategy_field: str | None = None,
    format: str = AUTO,
    each_turn: bool = False,
    empty: str = EMPTY[0],
    trained: Mapping[str, str] | None = None,
) -> Examples:
    """The records in file order, read lazily; a missing file and a form that is not known are
    reported at once.

    Args:
        path: as `files.sources_of` takes it.
        y_field: None if only prompts are needed; y is then empty, and messages are the prompt's.
        strategy_field: None leaves labels unread, as training does.
        format: as `formats.form_of` takes it.
        each_turn: of a conversation one example for each turn of the assistant, in their order,
            each with the turns before it; else for the last one.
        empty: what is done with records without text in prompt or completion: "error", or "skip",
            which of several completions leaves out the empty ones.
        trained: `format`, `x_field` and `y_field` that a run was trained with; they are taken where
            neither form nor fields are named and the records have them.

    Raises:
        UserError: names the file, the line, the field and the fix; also raised if there are no
            records.
    """
    if trained is not None and (format != AUTO or x_field != "x" or y_field not in ("y", None)):
        trained = None
    sources = [
        (source, _form(source, x_field, y_field, format, trained)) for source in sources_of(path)
    ]
    return Examples(path, sources, y_field is not None, strategy_field, each_turn, empty)


def _form(
    source: Source,
    x_field: str,
    y_field: str | None,
    asked: str,
    trained: Mapping[str, str] | None,
) -> tuple[Form, list[str]]:
    """The form of a source, and the names of the fields of its first records that it does not
    read.
    """
    with closing(source.records()) as records:
        first = list(islice(records, FIRST))
    if not first:
        raise UserError(f"{source.name}: holds no records")
    complete = y_field is not None
    if trained is None:
        form = None
    else:
        form = _form_of_run(first, complete, **trained)
    form = form or form_of(first, asked=asked, x_field=x_field, y_field=y_field)
    names: dict[str, None] = {}  # in the order in which they come
    read: set[str] = set()
    for _, record in first:
        own = [str(name) for name in record]
        names.update(dict.fromkeys(own))
        read.update(form.names(record, complete))
    unread = [name for name in names if name not in read]
    return form, unread


def _form_of_run(
    first: Sequence[tuple[str, Record]], complete: bool, format: str, x_field: str, y_field: str
) -> Form | None:
    """The form in which a run read its records, where the first records are of it."""
    try:
        form = form_of(first, asked=format, x_field=x_field, y_field=y_field if complete else None)
    except UserError:
        return None
    if all(form.fits(record, complete) for _, record in first):
        return form
    return None


class Examples:
    """The examples of a data set; each iteration reads the files again. A record with several
    completions gives as many examples, one after another.

    Attributes:
        left_out: records of which something was empty and left out, after an iteration.
    """

    def __init__(
        self,
        data: str,
        sources: list[tuple[Source, tuple[Form, list[str]]]],
        complete: bool,
        strategy_field: str | None,
        each_turn: bool = False,
        empty: str = EMPTY[0],
    ) -> None:
        self.data = data
        self._sources = sources
        self._complete = complete
        self._strategy_field = strategy_field
        self._each_turn = each_turn and complete
        self._empty = empty
        self.left_out = 0
        self._left_out_places = list[str]()
        self._records = self._count = self._unread = self._repeats = 0
        self._turns: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Example]:
        for example, _ in self.with_records():
            yield example

    def with_records(self) -> Iterator[tuple[Example, Record]]:
        """Each example with the record that it was read from."""
        records = count = unread = most = left_out = repeats = 0
        places: list[str] = []
        least = 2**63
        label = self._strategy_field
        for source, (form, _) in self._sources:
            read = form.read
            complete = self._complete
            placed = source.records()
            for where, record in placed:
                records += 1
                if label is not None:
                    strategy = _strategy(record, label, where)
                else:
                    strategy = None
                try:
                    found = read(record, where, complete)
                except EmptyText as error:
                    if self._empty == EMPTY[0]:
                        raise _with_others(error, placed, form, complete) from error
                    found = error.others
                    left_out += 1
                    places += [where] * (len(places) < SHOWN_PLACES)
                except UserError as error:
                    # the first record is of the form, unless that was asked for
                    if records > 1:
                        other = other_form(record, form, complete)
                    else:
                        other = None
                    if other is not None:
                        raise UserError(
                            f"{where}: has the format '{other.shown}', and the file is read as "
                            f"'{form.shown}'; give records of each form in a file of their own"
                        ) from error
                    raise
                if self._each_turn and found:
                    found = [*earlier_answers(found[0]), *found]
                for x, y, messages, tools, after in found:
                    count += 1
                    repeats += y.startswith(x) and len(x) >= REPEATED
                    if messages is not None:
                        least = min(least, len(messages))
                        most = max(most, len(messages))
                        unread += after > 0
                    yield Example(x, y, strategy, messages, tools, where), record
        if not count:
            if records:
                none = f"of {_counted(records, 'record')} none has text"
            else:
                none = "no records"
            raise UserError(f"{self.data}: {none}")
        self._records = records
        self._count = count
        self._unread = unread
        self._repeats = repeats if self._complete else 0
        self.left_out = left_out
        self._left_out_places = places
        self._turns = (least, most) if most else None

    def summary(self) -> str:
        """The form, the number of records and the fields that are not read, after an iteration."""
        forms = list(dict.fromkeys(form.shown for _, (form, _) in self._sources))
        said = [f"{self.data}: {' and '.join(forms)}", _counted(self._records, "record")]
        if self._count != self._records:
            said.append(_counted(self._count, "completion" if self._complete else "prompt"))
        if self._turns is not None:
            least, most = self._turns
            said.append(_counted(most, "turn") if least == most else f"{least} to {most} turns")
        unread = self.unread_fields()
        if unread:
            notes = [f"not read: {', '.join(unread)}"]
        else:
            notes = []
        if self.left_out:
            places = [place.rpartition(":")[2].strip() for place in self._left_out_places]
            more = [".."] * (self.left_out > len(places))
            notes.append(
                f"what is empty is left out, in {_counted(self.left_out, 'record')}: "
                f"{', '.join(places + more)}"
            )
        if self._unread:
            notes.append(
                f"{self._unread:,} continue after the assistant's last turn, which is not read"
            )
        if self._repeats > self._count / 2:
            notes.append(
                f"{self._repeats:,} of {self._count:,} completions begin with the whole prompt; if "
                "that is not to be learned, take it out of them"
            )
        return "; ".join([", ".join(said), *notes])

    def unread_fields(self) -> list[str]:
        """The first few fields of the records that are not read, for messages."""
        of_sources = chain.from_iterable(names for _, (_, names) in self._sources)
        known = (*NAMED, "strategy", self._strategy_field)
        unread = [shown_name(n) for n in dict.fromkeys(of_sources) if n not in known]
        if len(unread) <= SHOWN_FIELDS:
            return unread
        return [*unread[:SHOWN_FIELDS], "..."]


def _with_others(error: EmptyText, rest: Reading, form: Form, complete: bool) -> UserError:
    """The error with the other records of the file that have no text, so that all can be removed
    at once.
    """
    others = []
    try:
        for where, record in rest:
            try:
                form.read(record, where, complete)
            except EmptyText:
                _, _, place = where.rpartition(":")
                others.append(place.strip())
    except UserError:
        pass  # what is wrong otherwise is said when this is right
    if not others:
        return error
    shown = ", ".join(others[:SHOWN_PLACES])
    if len(others) > SHOWN_PLACES:
        shown += ", .."
    number = _counted(len(others), "other")
    return UserError(f"{error}; {number} of the file as well: {shown}")


def _counted(number: int, what: str) -> str:
    """A number with what it counts, in the plural where it is one."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def _strategy(record: Record, label: str, where: str) -> str | None:
    """The record's label, None where it is empty; raises UserError for anything but text."""
    strategy = record.get(label)
    if strategy is None:
        return None
    if not isinstance(strategy, str):
        raise UserError(
            f"{where}: field '{label}' must be text or null, found {type(strategy).__name__}"
        )
    check_characters(strategy, f"{where}: field '{label}'")
    return strategy if strategy.strip() else None


def stream_answers(
    path: str,
    *,
    x_field: str = "x",
    y_field: str = "y",
    format: str = AUTO,
    each_turn: bool = False,
    empty: str = EMPTY[0],
    trained: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, str | None, dict[str, Any] | None]]:
    """(x, y, the record's `answer`, its `metadata`) of each example, for judges that compare with
    them; None where a record has none.

    Raises:
        UserError: as `stream_examples`, or `answer` is neither text nor a number.
    """
    examples = stream_examples(
        path,
        x_field=x_field,
        y_field=y_field,
        format=format,
        each_turn=each_turn,
        empty=empty,
        trained=trained,
    )
    for example, record in examples.with_records():
        answer = record.get("answer")
        metadata = record.get("metadata")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
            raise UserError(
                f"{example.where}: field 'answer' must be text or a number, found "
                f"{type(answer).__name__}"
            )
        yield (
            example.x,
            example.y,
            None if answer is None else str(answer),
            metadata if isinstance(metadata, dict) else None,
        )


@dataclass(frozen=True)
class Prompts:
    """The distinct prompts of records, in order of first appearance, as records without y; they
    are kept in a disk-backed array (`DiskArray`).

    Attributes:
        digests: (P, 16) uint8, hashes of their texts.
    """

    digests: np.ndarray
    _text: np.ndarray
    _starts: np.ndarray
    _stops: np.ndarray

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Prompts:
        """Reads the examples once; only a digest of each stays in memory."""
        digests = bytearray()  # no Python object per record
        with DiskArray(np.uint8) as text, DiskArray(np.int64) as ends:
            stop = 0
            for example in examples:
                data = _stored_prompt(example)
                digests += hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
                text.append(np.frombuffer(data, np.uint8))
                stop += len(data)
                ends.append([stop])
            _, first = np.unique(np.frombuffer(digests, f"V{DIGEST_BYTES}"), return_index=True)
            first.sort()
            stops = ends.array()
            return cls(
                np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)[first],
                text.array(),
                np.where(first > 0, stops[first - 1], 0),
                stops[first],
            )

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, rows: range) -> list[Example]:
        prompts = []
        for row in rows:
            start = self._starts[row]
            stop = self._stops[row]
            text = self._text[start:stop]
            prompts.append(_read_prompt(text.tobytes()))
        return prompts


CONVERSATION = b"\0"  # marks a stored conversation; no text holds this character


def _stored_prompt(example: Example) -> bytes:
    """A prompt as bytes, conversations distinguished from texts by how they begin."""
    if example.messages is None:
        return example.x.encode()
    parts = {"x": example.x, "messages": example.messages, "tools": example.tools}
    return CONVERSATION + json.dumps(parts, ensure_ascii=False, default=str).encode()


def _read_prompt(data: bytes) -> Example:
    """The reverse of `_stored_prompt`."""
    if not data.startswith(CONVERSATION):
        return Example(data.decode(), "")
    parts = json.loads(data[len(CONVERSATION) :])
    return Example(parts["x"], "", messages=tuple(parts["messages"]), tools=parts["tools"])


def completed_record(
    prompt: Example, text: str, calls: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A record of a prompt and a completion, in the form in which it is read again.

    Args:
        calls: calls of tools, in the form of chat templates, that the completion makes.
    """
    if prompt.messages is None and not calls:
        return {"x": prompt.x, "y": text}
    answer: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        answer["tool_calls"] = list(calls)
    turns = [*prompt_turns(prompt), answer]
    record: dict[str, Any] = {"messages": turns}
    if prompt.tools:
        record["tools"] = prompt.tools
    return record
