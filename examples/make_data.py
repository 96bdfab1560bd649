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
import random
import signal
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.flags import Parser, at_least
from examples.records import read_prompts, write
from examples.tasks import TASKS
from examples.tasks.task import Task

BUCKETS = 61
# draws in a row without a new prompt after which the bucket counts as used up
PATIENCE = 2000 * BUCKETS


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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is no traceback
    main()
