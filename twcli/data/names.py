"""`names.jsonl`: the latent of every completion, as a file that people read and edit.

One JSON object a line, in the order of the data:
`{"row": 0, "hash": "32 hex digits", "latent": 2, "probability": 0.9731}`. `latent` null means that
the training has to find it. `name`, a string, names the latent for people and for `twcli export`;
it is enough on one line of the latent. Further keys, such as a person's notes, are ignored. Shapes:
N rows of the data, K latents.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from twcli.data.json_records import distinct
from twcli.data.opening import opened
from twcli.errors import UserError, first_line
from twcli.storage.durable import sync_folder

MAX_LINE_BYTES = 2**20  # a line is some 90 bytes and a person's note
MAX_LATENTS = 1024  # the most that --latents takes
ROWS_A_WRITE = 8192
HASH = re.compile("[0-9a-fA-F]{32}")
FIELDS = ("row", "hash", "latent", "probability")
DISCOVER_AGAIN = "run `twcli discover` again"


@dataclass(frozen=True)
class Names:
    """What a names file says.

    Attributes:
        latent_N: int64, 0 to K - 1; -1 where the latent is to be found.
        probability_N: float32 in [0, 1], how sure the latent is; 0 where the file says null.
        latents: K, as given to `read_names` or else the largest latent + 1.
    """

    latent_N: np.ndarray
    probability_N: np.ndarray
    latents: int


def write_names(
    path: str | Path,
    row_hash: np.ndarray,
    latent_N: np.ndarray,
    probability_N: np.ndarray,
    row_numbers: np.ndarray | None = None,
) -> None:
    """`path` holds a line for each row or does not change, also through a kill or a power cut.

    Args:
        path: a file in a folder that exists.
        row_hash: (N, 16) uint8, the content hash of each row of the data.
        latent_N: (N,) integers, -1 for none.
        probability_N: (N,) in [0, 1], written with 4 decimals; ignored where the latent is -1.
        row_numbers: (N,) the rows' numbers in the data, ascending; None if no row was left out.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
        ValueError: shapes that do not belong together, or a probability outside [0, 1].
    """
    rows = len(row_hash)
    if row_hash.shape != (rows, 16) or latent_N.shape != (rows,) or probability_N.shape != (rows,):
        raise ValueError(
            f"shapes differ: {row_hash.shape}, {latent_N.shape}, {probability_N.shape}"
        )
    numbers = np.arange(rows) if row_numbers is None else row_numbers
    path = Path(path)
    temp = path.with_name(path.name + ".tmp")
    try:
        with temp.open("wb") as file:
            for start in range(0, rows, ROWS_A_WRITE):
                part = slice(start, start + ROWS_A_WRITE)
                file.write(
                    _lines(numbers[part], row_hash[part], latent_N[part], probability_N[part])
                )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        with suppress(OSError):  # a full disk gets its space back
            temp.unlink()
        raise
    sync_folder(path.parent)


def _lines(
    numbers: np.ndarray, row_hash: np.ndarray, latent: np.ndarray, probability: np.ndarray
) -> bytes:
    """The file's lines, one a row.

    Args:
        numbers: (N,) line of the data of each row.
        row_hash: (N, 16) uint8.
        latent: (N,) int, -1 for none.
        probability: (N,) of the latent.
    """
    known = latent >= 0
    sure = np.where(known, probability, 0.0).astype(np.float64)
    if not ((sure >= 0) & (sure <= 1)).all():  # NaN is not either
        raise ValueError("probabilities must lie in [0, 1]")
    digits = np.ascontiguousarray(row_hash, np.uint8).tobytes().hex()
    lines = []
    named_rows = zip(numbers.tolist(), latent.tolist(), np.round(sure, 4).tolist(), strict=True)
    for i, (row, k, p) in enumerate(named_rows):
        named = f'"latent": {k}, "probability": {p}'
        if k < 0:
            named = '"latent": null, "probability": null'
        lines.append(f'{{"row": {row}, "hash": "{digits[32 * i : 32 * i + 32]}", {named}}}\n')
    return "".join(lines).encode()


def read_names(
    path: str | Path,
    row_hash: np.ndarray,
    latents: int | None,
    row_numbers: np.ndarray | None = None,
) -> Names:
    """Reads and checks a names file, also one that a person has edited.

    Memory holds 12 bytes a row. A latent that was edited keeps the probability that the file says.

    Args:
        path: the file, not compressed.
        row_hash: (N, 16) uint8, the content hash of each row of the data that the file names.
        latents: K, which every latent must be below; None takes the largest latent + 1.
        row_numbers: (N,) the rows' numbers in the data, ascending; None if no row was left out.

    Raises:
        UserError: one line with the file, the line, the field and what to do about it.
    """
    if Path(path).suffix in (".gz", ".zst"):
        raise UserError(f"{path}: compressed names are not read; decompress the file first")
    rows = len(row_hash)
    latent_N = np.full(rows, -1, np.int64)
    probability_N = np.zeros(rows, np.float32)
    most = MAX_LATENTS if latents is None else latents
    if latents is None:
        limit = f"at most {MAX_LATENTS} latents"
    else:
        limit = f"--latents is {latents}"
    read = 0
    for row, (where, record) in enumerate(_records(path)):
        if row == rows:
            _refuse(
                where, "row", f"is one too many, the data has {rows} rows", _if_other_data("line")
            )
        number = row if row_numbers is None else int(row_numbers[row])
        _check_fields(record, where)
        _check_row(record["row"], number, where)
        _check_hash(record["hash"], row_hash[row], where)
        latent = _latent(record["latent"], most, limit, where)
        latent_N[row] = latent
        probability_N[row] = _probability(record["probability"], latent < 0, where)
        read = row + 1
    if read < rows:
        _refuse(
            f"{path}:{max(read, 1)}",
            "row",
            f"ends after {read} of the {rows} rows of the data",
            "add the missing lines, or " + DISCOVER_AGAIN,
        )
    if latents is None:
        latents = int(latent_N.max(initial=-1)) + 1
        if not latents:
            _refuse(f"{path}:1", "latent", "is null on every line", "give --latents")
    return Names(latent_N, probability_N, latents)


def read_latent_names(path: str | Path) -> dict[int, str]:
    """The latents' names, by latent, of those that have one.

    Raises:
        UserError: the file cannot be read, or a latent has two names.
    """
    names: dict[int, str] = {}
    for where, record in _records(path):
        latent = record.get("latent")
        name = record.get("name")
        if not isinstance(latent, int) or latent is True or not isinstance(name, str):
            continue
        if names.setdefault(latent, name) != name:
            _refuse(
                where,
                "name",
                f"is {_shown(name)}, and latent {latent} was named {_shown(names[latent])} before",
                "leave one of them out",
            )
    return names


def _refuse(where: str, field: str, what: str, fix: str) -> NoReturn:
    """Raises UserError that names the place, the field, what is wrong and what to do."""
    raise UserError(f"{where}: field '{field}' {what}; {fix}")


def _if_other_data(what: str) -> str:
    """What to do about one thing too many."""
    return f"remove the {what}, or where the file belongs to other data {DISCOVER_AGAIN}"


# The file as records


def _records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place (`path:line`) and the object of each line that is not blank, with one line in
    memory.
    """
    try:
        with opened(Path(path)) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{where}: line is longer than {MAX_LINE_BYTES >> 20} MiB; write one row "
                        "a line"
                    )
                if not line.isspace():
                    yield where, _parse(line, where)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; --names takes the names.jsonl that `twcli discover` wrote"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path}: cannot be read: {reason}") from error


def _refuse_constant(name: str) -> NoReturn:
    """Raises ValueError for NaN and infinities, which Python's JSON would take."""
    raise ValueError(f"{name} is not JSON; write null or a number")


def _finite(digits: str) -> float:
    """The number; raises ValueError for one that is infinite once it is read."""
    value = float(digits)
    if math.isinf(value):
        begin = digits[:20]
        raise ValueError(f"{begin} is too large for a number")
    return value


DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=distinct
)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    """The record of a line; raises UserError for anything but a JSON object."""
    try:
        record = DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON at column {error.colno}: {error.msg}; fix or restore it"
        ) from error
    except RecursionError as error:
        raise UserError(f"{where}: JSON is nested too deeply; a line is one flat object") from error
    except ValueError as error:  # NaN, a key given twice, a number with thousands of digits
        reason = str(error)[:200]
        raise UserError(f"{where}: not valid JSON: {reason}") from error
    if not isinstance(record, dict):
        wanted = ", ".join(FIELDS)
        kind = type(record).__name__
        raise UserError(
            f"{where}: expected an object with {wanted}, found {kind}; write one object a line"
        )
    return record


# The fields of a record


def _check_fields(record: dict[str, Any], where: str) -> None:
    """Raises UserError for the first field of `FIELDS` that is missing, with all that a line of a
    names file needs.
    """
    for field in FIELDS:
        if field not in record:
            wanted = ", ".join(FIELDS)
            _refuse(where, field, "is missing", f"each line needs {wanted}")


def _check_row(value: Any, row: int, where: str) -> None:
    """Raises UserError where the lines are not those of the data, in its order."""
    if not _is_whole(value):
        _refuse(where, "row", f"must be a whole number, found {_shown(value)}", f"write {row}")
    if value != row:
        _refuse(
            where,
            "row",
            f"is {_shown(value)}, expected {row}",
            "put the lines in the order of the data, none left out, none twice",
        )


def _check_hash(value: Any, expected: np.ndarray, where: str) -> None:
    """Raises UserError where a line belongs to another x or y.

    Args:
        expected: (16,) uint8.
    """
    if not isinstance(value, str) or not HASH.fullmatch(value):
        _refuse(
            where,
            "hash",
            f"must be 32 hex digits, found {_shown(value)}",
            "restore it, or " + DISCOVER_AGAIN,
        )
    if bytes.fromhex(value) != expected.tobytes():
        _refuse(
            where,
            "hash",
            "differs from the data's: the file belongs to other data, or the data changed",
            DISCOVER_AGAIN,
        )


def _latent(value: Any, most: int, limit: str, where: str) -> int:
    """The latent of a line, -1 for null.

    Args:
        most: K.
        limit: where K comes from, for the message.

    Raises:
        UserError: it is no whole number from 0 to K - 1.
    """
    if value is None:
        return -1
    fix = f"write 0 to {most - 1}, or null to have it found"
    if not _is_whole(value):
        _refuse(where, "latent", f"must be a whole number or null, found {_shown(value)}", fix)
    if value < 0:
        _refuse(where, "latent", f"is negative: {_shown(value)}", fix)
    if value >= most:
        _refuse(where, "latent", f"is an unknown latent {_shown(value)}; {limit}", fix)
    return int(value)


def _probability(value: Any, unnamed: bool, where: str) -> float:
    """The probability of a line, 0 for null.

    Args:
        unnamed: the line's latent is null.

    Raises:
        UserError: it is no number from 0 to 1, or null beside a latent.
    """
    fix = "write a number from 0 to 1"
    if value is None:
        if not unnamed:
            _refuse(where, "probability", "is null beside a latent", fix)
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse(where, "probability", f"must be a number, found {_shown(value)}", fix)
    if not 0 <= value <= 1:
        _refuse(where, "probability", f"is {_shown(value)}, outside 0 to 1", fix)
    return value


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    if isinstance(value, bool):  # True is an int to Python
        return False
    return isinstance(value, int)


def _shown(value: Any) -> str:
    """The value as JSON, cut: it is part of a message of one line."""
    text = json.dumps(value)
    if len(text) <= 40:
        return text
    return text[:37] + "..."
