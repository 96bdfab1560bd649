"""Files of records, as `make_data.py` reads and writes them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def read_prompts(file: Path) -> set[str]:
    """Prompts of a JSONL file.

    Raises:
        ValueError: names the file and the line.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            return {
                read_prompt(line, f"{file}:{number}") for number, line in enumerate(stream, start=1)
            }
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8") from error


def read_prompt(line: str, where: str) -> str:
    try:
        x = json.loads(line)["x"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: is not a JSON object with a field 'x'") from error
    if not isinstance(x, str):
        raise ValueError(f"{where}: field 'x' is not a text")
    return x


def write(out: Path, lines: Iterable[dict[str, str]]) -> int:
    """Writes the file as a whole or not at all; returns its number of prompts."""
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
    try:
        seen = set()
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            for record in lines:
                seen.add(record["x"])
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        # mkstemp makes files that only their owner can read
        os.chmod(name, 0o666 & ~current_umask())
        os.replace(name, out)
    except BaseException:
        os.unlink(name)
        raise
    return len(seen)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
