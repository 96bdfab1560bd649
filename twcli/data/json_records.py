"""Records of JSON: lines, an array, or other values one after another.

Those of an array are cut out of a window of text by the decoder of the standard library, so that
the rules for a line hold for them too: keys given twice are refused, and an error has a line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twcli.data.fields import Record
from twcli.data.placed import MAX_LINE_BYTES, Placed
from twcli.errors import UserError

WINDOW = 2**20  # characters of a JSON array that are read at a time
# An error of JSON so close to the window's end may come from the cut: the longest literal that the
# decoder takes for a whole is -Infinity, the longest escape \ud83d\ude00.
CUT = 16
MARK = "\ufeff"  # a byte order mark, where files that had one were joined
SPACE = re.compile(r"[ \t\r\n]*")
# Text that is not JSON, at the beginning of a line or where the decoder stopped, and what to do.
ODD_JSON = (
    (re.compile(r"#|//"), "JSON has no comments, remove it"),
    (re.compile(r",\s*[{\[]"), "leave out the comma between records"),
    (re.compile(r"[}\]]"), "leave out the comma before it"),
    (re.compile("\\{?\\s*[\u201c\u201d\u201e]"), 'write straight quotes (")'),
    (re.compile(r"\{?\s*&quot;"), 'these are entities of HTML, write " for &quot;'),
    (re.compile(r"---|- |\w+: "), "if it is YAML, write it as JSON lines"),
)


def distinct(pairs: list[tuple[str, Any]]) -> Record:
    """An object of JSON; raises ValueError where it has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:100]!r} is given twice; leave one out")
    return found


# NaN and numbers that are infinite may be in fields that are not read.
DECODER = json.JSONDecoder(object_pairs_hook=distinct)


def json_records(stream: Any, file: Path) -> Iterator[Placed]:
    """The records of JSON lines, of an array, or of objects written over several lines."""
    blank = 0
    first = stream.readline(MAX_LINE_BYTES + 1)
    while first.isspace():
        blank += first.count(b"\n")
        first = stream.readline(MAX_LINE_BYTES + 1)
    begin = first.lstrip()
    if begin.startswith(b"["):
        return _values(_Window(stream, first, file, blank), file, array=True)
    if begin.startswith(b"{") and _continues(first):
        return _values(_Window(stream, first, file, blank), file, array=False)
    return _lines(stream, first, file, blank)


def _continues(line: bytes) -> bool:
    """Whether a first line is the beginning of an object that the next lines continue."""
    try:
        DECODER.decode(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        return line.endswith(b"\n") and error.pos >= len(error.doc.rstrip())
    except (ValueError, RecursionError):
        pass
    return False


def _lines(stream: Any, line: bytes, file: Path, number: int) -> Iterator[Placed]:
    """Records of a JSONL file, each with its place.

    Args:
        line: the first one, which has been read already.
        number: lines before it.
    """
    while line:
        number += 1
        where = f"{file}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"{where}: line is longer than {MAX_LINE_BYTES >> 20} MiB; write one record a line"
            )
        try:
            record = _decoded_line(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from error
        except (RecursionError, ValueError):
            for record in odd_line(line.decode("utf-8"), where):
                yield where, _object(record, where)
        else:
            yield where, record if type(record) is dict else _object(record, where)
        line = stream.readline(MAX_LINE_BYTES + 1)


def _decoded_line(line: str) -> Any:
    """As `DECODER.decode`, which takes a tenth of the time of reading more for its white space."""
    value, end = DECODER.raw_decode(line)
    content = line.rstrip()
    if end != len(content):
        raise ValueError("more than one value")
    return value


def odd_line(line: str, where: str, decoder: json.JSONDecoder = DECODER) -> list[Any]:
    """The values of a line that is not one JSON value by itself: none on a blank line, several
    where files were joined without a line break or lines end with CR alone; a byte order mark may
    precede each.

    Raises:
        UserError: it is something else.
    """
    values = []
    at = _next_value(line, 0)
    while at < len(line):
        if line[at] == "\0":
            raise UserError(
                f"{where}: holds NUL bytes, as files do that were not written to their end; "
                "write the file again, or cut it off there"
            )
        try:
            value, at = decoder.raw_decode(line, at)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: not valid JSON at column {error.colno}: {error.msg}"
                f"{_hint(line, line[error.pos :], error)}"
            ) from error
        except (RecursionError, ValueError) as error:
            raise UserError(f"{where}: {_why(error)}") from error
        values.append(value)
        at = _next_value(line, at)
        if at < len(line) and line[at] not in "{\0":
            raise UserError(
                f"{where}: not valid JSON at column {at + 1}: a record ends, and more text "
                "follows; write one record a line"
            )
    return values


def _next_value(line: str, at: int) -> int:
    """The place of the next value in a line, behind white space and byte order marks."""
    while at < len(line):
        character = line[at]
        if character != MARK and not character.isspace():
            break
        at += 1
    return at


def _hint(begin: str, rest: str, error: json.JSONDecodeError) -> str:
    """What to do about text that is not JSON, where it looks like something known.

    Args:
        begin: the record.
        rest: what follows from where the decoder stopped.
    """
    begin = begin.lstrip()
    rest = rest.lstrip()
    quoted = re.match(r"\{\s*'", begin)
    if quoted or rest.startswith(("None", "True", "False")):
        return "; this is Python's notation, write it with json.dumps"
    for found, then in ODD_JSON:
        if found.match(begin) or found.match(rest):
            return f"; {then}"
    if error.msg.startswith("Invalid control character"):
        return "; write a tab as \\t and a line break as \\n"
    if "escape" in error.msg:
        return "; write a backslash as \\\\"
    if error.msg.startswith("Unterminated") or not rest:
        return "; the record is cut off: write the file again, or remove the line"
    if begin[:1] not in ("{", "["):
        return "; write JSON lines, or give a table the suffix .csv or .tsv"
    return ""


def _object(record: Any, where: str) -> Record:
    """The record as it is; raises UserError with what was found where it is no JSON object."""
    if isinstance(record, dict):
        return record
    found = type(record).__name__
    if isinstance(record, str):
        found += '; write {"x": ..} for a prompt alone'
    raise UserError(f"{where}: expected a JSON object with 'x' and 'y', found {found}")


def _why(error: RecursionError | ValueError) -> str:
    """What is wrong with JSON, for a message."""
    if isinstance(error, RecursionError):
        return "JSON is nested too deeply; a record is one flat object"
    if "integer string conversion" in str(error):  # a limit of Python's
        return "not valid JSON: a number of thousands of digits; write it as text"
    return f"not valid JSON: {str(error)[:200]}"  # a key given twice


class _Window:
    """A part of a text, in which JSON values are found one after another.

    Attributes:
        text: what was read and is not yet done with.
        at: index into `text` of what comes next.
        ended: whether `text` holds the end of the file.
    """

    def __init__(self, stream: Any, first: bytes, file: Path, lines: int) -> None:
        decoder_class = codecs.getincrementaldecoder("utf-8")
        self._stream = stream
        self._file = file
        self._decoder = decoder_class()
        self._lines = lines  # before `text`
        self.text = ""
        self.at = 0
        self.ended = False
        self._add(first)

    def _add(self, data: bytes) -> None:
        """Decodes more of the file and drops what was read."""
        self._lines += self.text.count("\n", 0, self.at)
        self.text = self.text[self.at :]
        self.at = 0
        self.ended = not data
        try:
            self.text += self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            lines = self.text.count("\n") + error.object[: error.start].count(b"\n")
            raise UserError(
                f"{self._file}:{self._lines + lines + 1}: is not UTF-8; save the file as UTF-8"
            ) from error

    def more(self) -> None:
        """Drops what is done with and reads on."""
        self._add(self._stream.read(WINDOW))

    def next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            found = SPACE.match(self.text, self.at)
            if found is not None:
                self.at = found.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()

    def place(self, at: int) -> str:
        """The file with the line of a character."""
        before = self._lines + self.text.count("\n", 0, at)
        return f"{self._file}:{before + 1}"

    def value(self, number: int) -> Any:
        """The value that begins here.

        Raises:
            UserError: it is not JSON, or too long.
        """
        while True:
            try:
                value, self.at = DECODER.raw_decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - CUT or error.msg.startswith("Unterminated")
                if not cut or self.ended:
                    rest = self.text[error.pos :]
                    column = error.pos - self.text.rfind("\n", 0, error.pos)
                    raise UserError(
                        f"{self.place(error.pos)}: not valid JSON at column {column}, in record "
                        f"{number}: {error.msg}{_hint(self.text[self.at :], rest, error)}"
                    ) from error
            except (RecursionError, ValueError) as error:
                raise UserError(f"{self.place(self.at)}: record {number}: {_why(error)}") from error
            if len(self.text) - self.at > MAX_LINE_BYTES:
                raise UserError(
                    f"{self.place(self.at)}: record {number} is longer than "
                    f"{MAX_LINE_BYTES >> 20} MiB; give a list of records, or one a line"
                )
            self.more()


def _values(window: _Window, file: Path, array: bool) -> Iterator[Placed]:
    """The objects of an array, or those that follow one another."""
    number = 0
    if array:
        window.next()
        window.at += 1
    while letter := window.next():
        if array and letter == "]":
            window.at += 1
            if window.next():
                raise UserError(
                    f"{window.place(window.at)}: more text after the end of the array; "
                    "write one array, or one record a line"
                )
            return
        if array and number:
            if letter != ",":
                raise UserError(
                    f"{window.place(window.at)}: expected a comma after record {number}, found "
                    f"{letter!r}"
                )
            window.at += 1
            window.next()
        number += 1
        where = f"{file}: record {number}"
        yield where, _object(window.value(number), where)
    if array:
        raise UserError(
            f"{file}: ends within the array, after record {number}; the file was cut off"
        )
