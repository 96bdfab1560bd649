"""Records of the library `datasets`: a folder that it saved, or a name on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twcli.data.placed import Reading
from twcli.data.tables import without_empty_fields
from twcli.errors import UserError, first_line
from twcli.storage import hub


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


def saved_table(path: Path) -> Any:
    """The `datasets.Dataset` of a folder; raises UserError where there are several, or none."""
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


def hub_table(data: str, name: str, config: str | None, split: str) -> Any:
    """The `datasets.Dataset` of a name on the hub; raises UserError where it cannot be loaded."""
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


def table_records(table: Any, data: str) -> Reading:
    """The records of a `datasets.Dataset`."""
    for number, record in enumerate(table, start=1):
        yield f"{data}: record {number}", without_empty_fields(record)
