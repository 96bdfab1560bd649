"""The files that `--data` names, as records with their places; one record in memory at a time.

JSON lines, a JSON array or other JSON values one after another, CSV and TSV, Parquet, all but the
last also compressed and in any Unicode encoding (see `opening`), with any line ends; a folder that
`datasets` saved, or a name on the Hugging Face hub. Several are joined in the order given, those of
a pattern in the order of their names.
"""

from __future__ import annotations

import difflib
import glob
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from twcli.data.datasets_library import hub_table, saved_table, table_records
from twcli.data.json_records import json_records
from twcli.data.opening import PACKED, PARQUET, opened
from twcli.data.placed import Reading
from twcli.data.tables import csv_records, parquet_records
from twcli.errors import UserError, first_line
from twcli.storage import hub

TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
READ = (".jsonl", ".ndjson", ".json", ".parquet", ".pq", *TABLES)
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # what `datasets` leaves
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
    if page := hub.name_on_page(data):
        raise UserError(f"{data}: is an address; give the name as NAME:CONFIG:SPLIT, {page}:..")
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
    table = hub_table(data, name, config or None, split or "train")
    return [Source(data, partial(table_records, table, data))]


def _alike(data: str) -> str:
    """The question whether a file was meant whose name is much the same; empty where none is."""
    path = Path(data)
    if not _is(path.parent.is_dir):
        return ""
    names = [file.name for file in path.parent.iterdir() if file.is_file()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    if close:
        return f"did you mean {path.with_name(close[0])}?"
    return ""


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
                yield from parquet_records(file)
            elif suffix in TABLES:
                yield from csv_records(stream, file, TABLES[suffix])
            else:
                yield from json_records(stream, file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{file}: cannot be read: {reason}") from error


def _folder(path: Path) -> Source:
    """The records of a folder that `datasets` saved.

    Raises:
        UserError: it is another one; files in it that can be read are named.
    """
    name = str(path)
    if any((path / file).exists() for file in SAVED):
        table = saved_table(path)
        return Source(name, partial(table_records, table, name))
    readable = {*READ, *PACKED}
    for pattern in ("*", "*/*"):  # a data set of the hub has its files in a folder data
        suffixes = {file.suffix for file in path.glob(pattern)}
        found = sorted(suffixes & readable)
        if found:
            raise UserError(
                f"{path}: a folder with files; name those to read, such as "
                f"'{path}/{pattern}{found[0]}'"
            )
    raise UserError(f"{path}: holds no data that `datasets` saved; {TAKES}")
