"""The files that `--data` names, as records with their places; one record in memory at a time.

JSON lines, a JSON array or other JSON values one after another, CSV and TSV, Parquet, all but the
last also packed and in any Unicode encoding (see `opening`), with any line ends; a folder that
`datasets` saved, or a name on the Hugging Face hub. Several are joined in the order given, those of
a pattern in the order of their names.

Records of JSON arrays are cut out of a window of text by the decoder of the standard library, so
that the rules for a line hold for them too: keys given twice are refused, and an error has a line.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from twcli.data.opening import PACKED, PARQUET, opened
from twcli.errors import UserError, first_line
from twcli.storage import hub

Record = dict[str, Any]
Placed = tuple[str, Record]  # a record and its place, for messages
Reading = Generator[Placed, None, None]

# a record is a prompt and a completion, not a corpus; keeps a broken file from filling memory
MAX_LINE_BYTES = 16 * 2**20
WINDOW = 2**20  # characters of a JSON array that are read at a time
# An error of JSON so close to the window's end may come from the cut: the longest literal that the
# decoder takes for a whole is -Infinity, the longest escape \ud83d\ude00.
CUT = 16
BATCH_ROWS = 1024  # of Parquet
MARK = "\ufeff"  # a byte order mark, where files that had one were joined
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
READ = (".jsonl", ".ndjson", ".json", ".parquet", ".pq", *TABLES)
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # what `datasets` leaves
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
LONE_CR = re.compile(r"(?<=\r)(?!\n)")
TAKES = (
    "--data takes a file (JSONL, JSON, CSV, TSV, Parquet), a pattern, a `datasets` folder or a "
    "hub name as NAME:CONFIG:SPLIT"
)


@dataclass(frozen=True)
class Source:
    """One file, folder or hub name; `records` opens and reads it."""

    name: str
    records: Callable[[], Reading]


def sources_of(data: str) -> list[Source]:
    """What `--data` names: a file, folder or hub name, a pattern with `*`, or several with commas.

    Raises:
        UserError: there is no such file, or a folder holds files and is not of `datasets`.
    """
    path = Path(data)
    if _is(path.is_file):
        return [Source(data, partial(read_file, path))]
    if _is(path.is_dir):
        return [_folder(path)]
    if "," in data:
        return [source for part in data.split(",") for source in sources_of(part.strip())]
    if any(letter in data for letter in "*?["):
        found = sorted(f for f in glob.glob(data, recursive=True) if Path(f).is_file())
        if not found:
            raise UserError(f"{data}: no file matches; check the pattern and the folder")
        return [Source(name, partial(read_file, Path(name))) for name in found]
    if "://" in data:
        raise UserError(f"{data}: is an address; download the file and give its path")
    name, *rest = data.split(":")
    if (
        "\\" in data
        or not hub.is_name(name)
        or len(rest) > 2
        or Path(name).suffix in (*READ, *PACKED)
    ):
        if _is(path.exists):
            raise UserError(f"{data}: cannot be read twice, as is needed; write it to a file")
        raise UserError(f"{data}: no such file; {_alike(data) or TAKES}")
    if "/" not in name and (alike := _alike(data)):  # names on the hub that lack an owner are few
        raise UserError(f"{data}: no such file; {alike}")
    config, split = [*rest, "", ""][:2]
    table = _loaded(data, name, config or None, split or "train")
    return [Source(data, partial(_rows, table, data))]


def _alike(data: str) -> str:
    """The question whether a file was meant whose name is much the same; empty where none is."""
    path = Path(data)
    if not _is(path.parent.is_dir):
        return ""
    names = [file.name for file in path.parent.iterdir() if file.is_file()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"did you mean {path.with_name(close[0])}?" if close else ""


def files_of(data: str) -> list[Path]:
    """The files and folders that `--data` names, as far as they are here."""
    path = Path(data)
    if _is(path.exists):
        return [path]
    if "," in data:
        return [file for part in data.split(",") for file in files_of(part.strip())]
    return [Path(name) for name in glob.glob(data, recursive=True)]


def _is(test: Callable[[], bool]) -> bool:
    """Whether a test of a path holds; a path that no file can have is none."""
    try:
        return test()
    except (OSError, ValueError):  # a name too long for a file, or with a NUL
        return False


def read_file(file: Path) -> Reading:
    """The records of a file, by its suffix and its first bytes.

    Raises:
        UserError: names file, line or record, and what to do.
    """
    try:
        suffix = file.suffix.lower()
        packed = suffix in PACKED
        if packed:
            suffix = Path(file.stem).suffix.lower()
        with opened(file) as stream:
            if stream.peek(4).startswith(PARQUET) or suffix in (".parquet", ".pq"):
                if packed:
                    raise UserError(
                        f"{file}: Parquet is compressed inside; decompress the file first"
                    )
                if stream.peek(1)[:1] in (b"{", b"["):
                    raise UserError(
                        f"{file}: looks like JSON, not like Parquet; give it the suffix .jsonl"
                    )
                yield from _parquet(file)
            elif suffix in TABLES:
                yield from _table(stream, file, TABLES[suffix])
            else:
                yield from _json(stream, file)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{file}: cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from error


# JSON


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


def _json(stream: Any, file: Path) -> Iterator[Placed]:
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
    if end != len(line.rstrip()):
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
    while at < len(line) and (line[at].isspace() or line[at] == MARK):
        at += 1
    return at


def _hint(begin: str, rest: str, error: json.JSONDecodeError) -> str:
    """What to do about text that is not JSON, where it looks like something known.

    Args:
        begin: the record.
        rest: what follows from where the decoder stopped.
    """
    begin, rest = begin.lstrip(), rest.lstrip()
    if re.match(r"\{\s*'", begin) or rest.startswith(("None", "True", "False")):
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
    """The record; raises UserError where it is no JSON object."""
    if not isinstance(record, dict):
        then = '; write {"x": ..} for a prompt alone' if isinstance(record, str) else ""
        raise UserError(
            f"{where}: expected a JSON object with 'x' and 'y', found {type(record).__name__}{then}"
        )
    return record


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
        self._stream = stream
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
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
            self.at = self.at if found is None else found.end()
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


# Tables


def _table(stream: Any, file: Path, delimiter: str) -> Iterator[Placed]:
    """The rows of CSV with a header (RFC 4180), also with semicolons, as in countries where the
    comma is in numbers, and with a first line that names the delimiter, as spreadsheets write it.
    """
    lines = _decoded(stream, file)
    first = next(lines, "")
    line = 0
    while first.isspace():
        first = next(lines, "")
        line += 1
    if named := re.fullmatch(r"sep=(.)\s*", first):
        delimiter = named[1]
        first = next(lines, "")
        line += 1
    elif first.startswith(('{"', "[{")):
        raise UserError(
            f"{file}:{line + 1}: looks like JSON, not like a table; give the file the suffix .jsonl"
        )
    elif delimiter not in first:
        delimiter = next((other for other in ";\t|" if other in first), delimiter)
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    before = line
    try:
        header = _header(next(reader, []), f"{file}:{line + 1}")
        line += reader.line_num
        for cells in reader:
            where = f"{file}:{line + 1}"
            line = before + reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)} columns; put "
                    f"text with {delimiter!r} or a line break between double quotes"
                )
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{file}:{before + reader.line_num}: not valid CSV: {error}; close each double quote, "
            "and double those within a text"
        ) from error


def _header(cells: list[str], where: str) -> list[str]:
    """The names of the columns; one without a name, such as an index, gets its number."""
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where}: column {twice[:100]!r} is given twice; rename one")
    return names


def _decoded(stream: Any, file: Path) -> Iterator[str]:
    """The lines with their ends, which may be CR alone."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{file}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{where}: line is longer than {MAX_LINE_BYTES >> 20} MiB")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from error
        if "\0" in text:
            raise UserError(
                f"{where}: holds NUL bytes, as files do that were not written to their end; "
                "write the file again, or cut it off there"
            )
        yield from LONE_CR.split(text) if "\r" in text else [text]


def _parquet(file: Path) -> Iterator[Placed]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{file}: Parquet needs pip install 'twcli-cvae[parquet]'") from error
    number = 0
    try:
        # Pages are read as they are needed: a row group may be the whole file.
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=WINDOW) as table:
            names = table.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(f"{file}: column {twice[:100]!r} is given twice; rename one")
            for batch in table.iter_batches(BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{file}: record {number}", _filled(record)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        after = f" after record {number}" if number else ""
        raise UserError(f"{file}: not valid Parquet{after}: {first_line(error)}") from error


def _filled(record: Record) -> Record:
    """The record without the empty fields that a table gives to objects inside it, because others
    have them.
    """
    return {
        name: _without_nulls(value) if isinstance(value, list | dict) else value
        for name, value in record.items()
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


# `datasets`


def _folder(path: Path) -> Source:
    if any((path / name).exists() for name in SAVED):
        table = _saved(path)
        return Source(str(path), partial(_rows, table, str(path)))
    for pattern in ("*", "*/*"):  # a data set of the hub has its files in a folder data
        found = sorted({file.suffix for file in path.glob(pattern)} & {*READ, *PACKED})
        if found:
            raise UserError(
                f"{path}: a folder with files; name those to read, such as "
                f"'{path}/{pattern}{found[0]}'"
            )
    raise UserError(f"{path}: holds no data that `datasets` saved; {TAKES}")


def _library(data: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{data}: no such file; `datasets` folders and hub names need: "
            "pip install 'twcli-cvae[datasets]'"
        ) from error
    datasets.disable_progress_bars()
    return datasets


def _saved(path: Path) -> Any:
    datasets = _library(str(path))
    try:
        table = datasets.load_from_disk(str(path))
    except Exception as error:
        # the library raises a dozen unrelated types; all mean that the data cannot be loaded
        raise UserError(f"{path}: `datasets` cannot load it: {first_line(error)}") from error
    if isinstance(table, dict):
        raise UserError(
            f"{path}: holds the splits {', '.join(table)}; give the folder of one of them"
        )
    return table


def _loaded(data: str, name: str, config: str | None, split: str) -> Any:
    there = hub.has(name, "dataset")
    datasets = _library(data)
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        if not there:
            raise UserError(
                f"{data}: no such file here; the hub cannot be reached, and the data are not among "
                "those loaded before"
            ) from error
        raise UserError(
            f"{data}: `datasets` cannot load it: {first_line(error)}; a hub name is "
            "NAME:CONFIG:SPLIT"
        ) from error
    return table


def _rows(table: Any, data: str) -> Reading:
    for number, record in enumerate(table, start=1):
        yield f"{data}: record {number}", _filled(record)
