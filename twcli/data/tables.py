"""Records of tables: CSV and TSV, and Parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from twcli.data.fields import Record
from twcli.data.placed import MAX_LINE_BYTES, Placed
from twcli.errors import UserError, first_line

BATCH_ROWS = 1024  # of Parquet
BUFFER_BYTES = 2**20  # of Parquet
LONE_CR = re.compile(r"(?<=\r)(?!\n)")


def csv_records(stream: Any, file: Path, delimiter: str) -> Iterator[Placed]:
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
    names: list[str] = []
    for number, cell in enumerate(cells, start=1):
        names.append(cell.strip() or f"column {number}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        shown = twice[:100]
        raise UserError(f"{where}: column {shown!r} is given twice; rename one")
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
        if "\r" in text:
            yield from LONE_CR.split(text)
        else:
            yield text


def parquet_records(file: Path) -> Iterator[Placed]:
    """The rows of Parquet; raises UserError where it is damaged, or pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{file}: Parquet needs pip install 'twcli-cvae[parquet]'") from error
    number = 0
    try:
        # Pages are read as they are needed: a row group may be the whole file.
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES) as table:
            names = table.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(f"{file}: column {twice[:100]!r} is given twice; rename one")
            for batch in table.iter_batches(BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{file}: record {number}", without_empty_fields(record)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        after = f" after record {number}" if number else ""
        raise UserError(f"{file}: not valid Parquet{after}: {first_line(error)}") from error


def without_empty_fields(record: Record) -> Record:
    """The record without the empty fields that a table gives to objects inside it, because others
    have them.
    """
    return {
        name: _without_nulls(value) if isinstance(value, list | dict) else value
        for name, value in record.items()
    }


def _without_nulls(value: Any) -> Any:
    """The value without the nulls that Parquet gives to keys that other records have."""
    if isinstance(value, dict):
        given = {key: part for key, part in value.items() if part is not None}
        return {key: _without_nulls(part) for key, part in given.items()}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value
