"""Tables that a benchmark writes into a page between two marks; what is around them is prose and
stays. What they are made of is written beside the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def marks(name: str) -> tuple[str, str]:
    """The lines that a table of this name lies between."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def between(page: Path, name: str) -> str:
    """What the page has between the marks.

    Raises:
        ValueError: a mark is missing.
    """
    begin, end = marks(name)
    text = page.read_text(encoding="utf-8")
    start = text.index(begin) + len(begin)
    return text[start : text.index(end, start)].strip()


def write(page: Path, name: str, tables: Callable[[list[Any]], str], figures: list[Any]) -> None:
    """Puts the tables of these figures between the marks of the page, and the figures into a JSON
    file of the page's name, an entry a line.

    Raises:
        ValueError: one mark is missing, or they are the wrong way round.
    """
    put(page, name, tables(figures))
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in figures)
    page.with_suffix(".json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def put(page: Path, name: str, table: str) -> None:
    """Writes a table between the marks, or at the end of a page that has none.

    Args:
        table: Markdown.

    Raises:
        ValueError: one mark is missing, or they are the wrong way round.
    """
    begin, end = marks(name)
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if begin not in text and end not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    before, _, rest = text.partition(begin)
    if end not in rest:  # all that follows would be lost
        raise ValueError(f"{page}: has no {begin} with a {end} after it")
    after = rest.partition(end)[2]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{begin}\n\n{table.strip()}\n\n{end}{after}", encoding="utf-8")
