"""Writes records of a synthetic task: prompts, each with completions drawn
from a mixture of strategies.

    python examples/make_data.py sorting_algorithms --records 40000 --completions 4 --seed 0 \\
      --out train.jsonl
    python examples/make_data.py sorting_algorithms --records 1200 --completions 4 --seed 1 \\
      --out test.jsonl

A prompt's hash puts it into one of 61 buckets and a seed draws from bucket `seed mod 61` only, so
files of seeds that differ modulo 61 share no prompt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.tasks import TASKS
from examples.tasks.task import Task

BUCKETS = 61
# draws in a row without a new prompt after which the bucket counts as used up
PATIENCE = 2000 * BUCKETS


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="make_data.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument(
        "--records", type=at_least(1), required=True, metavar="N", help="lines to write"
    )
    parser.add_argument(
        "--completions",
        type=at_least(1),
        default=4,
        metavar="M",
        help="completions of each prompt, drawn independently, so some are equal (default 4)",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="default 0")
    parser.add_argument("--out", type=Path, required=True, metavar="F.jsonl")
    parser.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="F.jsonl",
        help="draw no prompt of this file; may be repeated",
    )
    args = parser.parse_args(argv)
    try:
        excluded = {x for file in args.exclude for x in read_prompts(file)}
        drawn = records(TASKS[args.task], args.records, args.completions, args.seed, excluded)
        prompts = write(args.out, drawn)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{args.out}: cannot be written: {error.strerror}")
    print(
        f"{args.out}: {args.records} records of {prompts} prompts, {args.task}, "
        f"{args.completions} completions each, seed {args.seed}",
        file=sys.stderr,
    )


def at_least(least: int):
    def integer(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return integer


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


def bucket(x: str) -> int:
    return int.from_bytes(hashlib.sha256(x.encode()).digest()[:8], "big") % BUCKETS


def prompts(
    task: Task, rng: random.Random, wanted_bucket: int, excluded: set[str]
) -> Iterator[str]:
    """Different usable prompts of a bucket until no more are found."""
    seen, idle = set(excluded), 0
    while idle < PATIENCE:
        idle += 1
        x = task.sample_prompt(rng)
        # The hash is the cheapest test and refuses 60 of 61.
        if bucket(x) == wanted_bucket and x not in seen:
            seen.add(x)
            if task.is_usable(x):
                idle = 0
                yield x


def records(
    task: Task, number: int, completions: int, seed: int, excluded: set[str]
) -> Iterator[dict[str, str]]:
    """Exactly `number` records, those of a prompt one after another.

    Raises:
        ValueError: the task has too few prompts.
    """
    rng, left = random.Random(seed), number
    source = prompts(task, rng, seed % BUCKETS, excluded)
    for i in count():
        if not left:
            return
        x = next(source, None)
        if x is None:
            raise ValueError(
                f"{task.name} has only {i} prompts for seed {seed} beside the excluded ones, "
                f"enough for {number - left} records; ask for fewer or for more completions"
            )
        names, traces, answer = list(task.strategies), task.traces(x), task.answer(x)
        drawn = rng.choices(names, weights=task.mixture(x), k=min(completions, left))
        left -= len(drawn)
        for j, strategy in enumerate(drawn):
            yield {
                "x": x,
                "y": traces[strategy],
                "strategy": strategy,
                "id": f"{task.name}-{seed}-{i}-{j}",
                "answer": answer,
            }


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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is no traceback
    main()
