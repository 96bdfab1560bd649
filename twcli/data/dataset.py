"""Reads the records of `--data` as `Example`s.

JSONL, also as `.gz` or `.zst`, is read as a stream, with bounded memory per line; a `datasets`
folder or hub name needs the extra `datasets`. A record holds x and y, or `messages` with one user
and one assistant turn.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twcli.config.options import check_characters
from twcli.errors import UserError, first_line
from twcli.storage.disk_array import DiskArray

DIGEST_BYTES = 16
# a record is a prompt and a completion, not a corpus; keeps a broken file from filling memory
MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Example:
    """One record: prompt x, completion y and, for evaluation only, its strategy label.

    Attributes:
        x: the prompt. Of a conversation a readable text of it, for reports and judges only.
        y: the completion. Of a conversation the text of the target turn.
        messages: of a conversation all turns, the last one being the assistant's turn to learn;
            None where the record is two texts.
        tools: the functions offered in the conversation, as the chat template takes them.
    """

    x: str
    y: str
    strategy: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: list[Any] | None = None


def read_examples(path: str, **fields: Any) -> list[Example]:
    """All records of `stream_examples` as a list, for callers that need them more than once."""
    return list(stream_examples(path, **fields))


def stream_examples(
    path: str, *, x_field: str = "x", y_field: str | None = "y", strategy_field: str | None = None
) -> Iterator[Example]:
    """The records in file order, read lazily; a missing file is reported at once.

    Args:
        y_field: None if only prompts are needed; y is then empty.
        strategy_field: None leaves labels unread, as training does.

    Raises:
        UserError: names the file, the line, the field and the fix; also raised if there are no
            records.
    """
    return _examples(path, _records(path), x_field, y_field, strategy_field)


def stream_answers(
    path: str, *, x_field: str = "x", y_field: str = "y"
) -> Iterator[tuple[str, str, str | None, dict[str, Any] | None]]:
    """(x, y, the record's `answer`, its `metadata`) of each record, for judges that compare with
    them; None where a record has none.

    Raises:
        UserError: as `stream_examples`, or `answer` is neither text nor a number.
    """
    for where, record in _records(path):
        example = _to_example(record, where, x_field, y_field, None)
        answer, metadata = record.get("answer"), record.get("metadata")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
            raise UserError(
                f"{where}: field 'answer' must be text or a number, found {type(answer).__name__}"
            )
        yield (
            example.x,
            example.y,
            None if answer is None else str(answer),
            metadata if isinstance(metadata, dict) else None,
        )


@dataclass(frozen=True)
class Prompts:
    """The distinct prompts of records, in order of first appearance; their texts are in a
    disk-backed array (`DiskArray`).

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
                data = example.x.encode()
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

    def __getitem__(self, rows: range) -> list[str]:
        return [self._text[self._starts[row] : self._stops[row]].tobytes().decode() for row in rows]


def _examples(
    path: str,
    records: Iterator[tuple[str, dict[str, Any]]],
    x_field: str,
    y_field: str | None,
    strategy_field: str | None,
) -> Iterator[Example]:
    # digests of ids, and their line numbers: no Python object per record
    named, lines, number = bytearray(), array("Q"), 0
    for number, (where, record) in enumerate(records, start=1):
        if (name := record.get("id")) is not None and "id" not in (x_field, y_field):
            _check_id(name, where)
            named += hashlib.blake2b(repr(name).encode(), digest_size=DIGEST_BYTES).digest()
            lines.append(number)
        yield _to_example(record, where, x_field, y_field, strategy_field)
    if not number:
        raise UserError(f"{path}: holds no records; expected one JSON object a line")
    _, first, inverse = np.unique(
        np.frombuffer(named, f"V{DIGEST_BYTES}"), return_index=True, return_inverse=True
    )
    earliest = first[inverse.reshape(-1)]
    again = np.flatnonzero(earliest != np.arange(len(lines)))
    if len(again):
        raise UserError(
            f"{path}:{lines[again[0]]}: field 'id' is the same as on line "
            f"{lines[earliest[again[0]]]}; give each record its own, or none"
        )


def _records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    file = Path(path)
    if file.is_file():
        return _jsonl_records(file)
    if file.is_dir() or (
        not file.suffix and path.count("/") <= 1 and not path.startswith((".", "/"))
    ):
        return _datasets_records(path)
    raise UserError(
        f"{path}: no such file; --data takes a JSONL file, a `datasets` folder or a hub name"
    )


def _jsonl_records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with _opened(file) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{file}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{where}: line is longer than {MAX_LINE_BYTES >> 20} MiB; "
                        "write one record a line"
                    )
                # Refused instead of dropped silently: other tools that read the file would keep it.
                if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                    raise UserError(
                        f"{where}: begins with a byte order mark; save the file as UTF-8 without it"
                    )
                if line.endswith(b"\r\n"):
                    raise UserError(
                        f"{where}: ends with CR LF; save the file with LF alone, "
                        "or convert it with dos2unix"
                    )
                if not line.strip():
                    raise UserError(
                        f"{where}: line is empty; row i of the cache is line i of the data, "
                        "so remove it"
                    )
                yield where, _parse(line, where)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _opened(file: Path) -> Any:
    """The file's bytes as a stream, decompressed if its suffix says so. Raises OSError."""
    if file.suffix == ".gz":
        return gzip.open(file, "rb")
    if file.suffix != ".zst":
        return file.open("rb")
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"{file}: needs pip install 'twcli-cvae[zstd]'") from error
    return io.BufferedReader(_Zstandard(zstandard, file))


class _Zstandard(io.RawIOBase):
    """A decompressed `.zst` file; errors in it are raised as OSError, as gzip does."""

    def __init__(self, zstandard: Any, file: Path) -> None:
        self._broken = zstandard.ZstdError
        self._stream = zstandard.ZstdDecompressor().stream_reader(
            file.open("rb"), read_across_frames=True, closefd=True
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except self._broken as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        self._stream.close()
        super().close()


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise UserError(
            f"{where}: JSON is nested too deeply; a record is one flat object"
        ) from error
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {str(error)[:200]}") from error
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: expected a JSON object with 'x' and 'y', found {type(record).__name__}"
        )
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; write null or a number")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:100]!r} is given twice; leave one out")
    return found


DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_distinct
)


def _datasets_records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{path}: no such file; `datasets` folders and hub names need: "
            "pip install 'twcli-cvae[datasets]'"
        ) from error
    try:
        table = (
            datasets.load_from_disk(path)
            if Path(path).is_dir()
            else datasets.load_dataset(path, split="train")
        )
    except Exception as error:
        # the library raises a dozen unrelated types; all mean that the data cannot be loaded
        raise UserError(f"{path}: `datasets` cannot load it: {first_line(error)}") from error
    if isinstance(table, dict):
        raise UserError(
            f"{path}: holds the splits {', '.join(table)}; give the folder of one of them"
        )
    for number, record in enumerate(table, start=1):
        yield f"{path}:{number}", record


def _to_example(
    record: dict[str, Any],
    where: str,
    x_field: str,
    y_field: str | None,
    strategy_field: str | None,
) -> Example:
    if "messages" in record and x_field not in record:
        record = record | _turns(record["messages"], where, x_field, y_field)
    x = _text(record, x_field, where)
    y = "" if y_field is None else _text(record, y_field, where)
    strategy = record.get(strategy_field) if strategy_field else None
    if strategy is not None:
        if not isinstance(strategy, str):
            raise UserError(
                f"{where}: field '{strategy_field}' must be text or null, found "
                f"{type(strategy).__name__}"
            )
        check_characters(strategy, f"{where}: field '{strategy_field}'")
        strategy = strategy if strategy.strip() else None
    return Example(x=x, y=y, strategy=strategy)


def _turns(messages: Any, where: str, x_field: str, y_field: str | None) -> dict[str, Any]:
    """x and y of a conversation. More turns are refused, so that none is dropped silently."""
    wanted = [["user", "assistant"]] + ([["user"]] if y_field is None else [])
    whole = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    if not whole or [m.get("role") for m in messages] not in wanted:
        raise UserError(
            f"{where}: 'messages' must be one turn of the user and one of the assistant; "
            f"write '{x_field}' and '{y_field or 'y'}' yourself where there is more"
        )
    return {
        field: m.get("content")
        for field, m in zip((x_field, y_field), messages, strict=False)
        if field
    }


def _text(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(
            f"{where}: field '{field}' is missing; it has: "
            f"{', '.join(map(str, record)) or 'nothing'}"[:300]
        )
    value = record[field]
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{field}' must be text, found {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: field '{field}' is empty; give text or remove the line")
    check_characters(value, f"{where}: field '{field}'")
    return value


def _check_id(value: Any, where: str) -> None:
    """Checks that an id is not a path: nothing here writes a file of that name, but other tools
    may.
    """
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise UserError(
            f"{where}: field 'id' must be text or a whole number, found {type(value).__name__}"
        )
    if isinstance(value, str):
        check_characters(value, f"{where}: field 'id'")
        if value.startswith("/") or ".." in re.split(r"[/\\]", value):
            raise UserError(
                f"{where}: field 'id' is a path that leads elsewhere: {value[:100]!r}; "
                "give a plain name"
            )
