"""Prints several results of `twcli eval --json` side by side.

python examples/compare.py uniform=eval-uniform.json ours=eval.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from twcli.evaluation.report import mapping_line, rows_of


def main(arguments: list[str]) -> None:
    named = [argument.partition("=") for argument in arguments]
    if not named or not all(name and file for name, _, file in named):
        fail("give NAME=FILE, once or more")
    results = {name: read(file) for name, _, file in named}
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right", no_wrap=True)
    figures = {name: figures_of(result) for name, result in results.items()}
    # runs may have different numbers of latents, which have a row each
    for key in dict.fromkeys(key for one in figures.values() for key in one):
        table.add_row(key, *(one.get(key, "-") for one in figures.values()))
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table, markup=False)
    for name, result in results.items():
        if lines := mapping_line(result).splitlines():
            print(f"{name}: " + "; ".join(lines[1:]))


def figures_of(result: dict) -> dict[str, str]:
    """Name -> value and interval; without the diagnostics, which are about the weights and say
    little about the result.
    """
    return {
        f"{section} {key}" if section == "retention" else key: f"{value}  [{interval}]"
        if interval
        else value
        for section, key, value, interval, _ in rows_of(result)
        if section != "diagnostics"
    }


def read(file: str) -> dict:
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
        list(rows_of(result))
        mapping_line(result)
    except OSError as error:
        fail(f"{file}: cannot be read: {error.strerror}")
    except (ValueError, LookupError, TypeError):
        fail(f"{file}: is no output of `twcli eval --json`")
    return result


def fail(message: str) -> NoReturn:
    sys.exit(print(f"compare.py: {message}", file=sys.stderr) or 2)


if __name__ == "__main__":
    main(sys.argv[1:])
