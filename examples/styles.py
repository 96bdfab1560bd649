"""Small sums, each answered in three styles: terse, step by step, and code.
For a pretrained chat model.

    python examples/styles.py --records 180 --seed 0 --out train.jsonl
    twcli eval --run RUN --data test.jsonl --judge examples.styles:judge

Every question comes with all three answers, one a line, and its style as `strategy`
(read by evaluation only).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

THINGS = (
    "pens",
    "apples",
    "books",
    "tickets",
    "stamps",
    "marbles",
    "cookies",
    "shirts",
    "bricks",
    "seats",
)
HOLDERS = ("box", "basket", "shelf", "drawer", "crate", "room", "bag", "row", "truck", "table")
NAMES = ("Ana", "Ben", "Chloe", "Deng", "Ewa", "Farid", "Grace", "Hugo", "Ines", "Jun")


def times(rng: random.Random) -> tuple[str, str, str, str, int, int, int]:
    a, b, thing, holder = (
        rng.randint(3, 15),
        rng.randint(3, 12),
        rng.choice(THINGS),
        rng.choice(HOLDERS),
    )
    return (
        f"Each {holder} has {a} {thing}. How many {thing} are there for {b} of them?",
        f"one {holder} has {a} {thing}",
        f"there are {b} of them",
        "*",
        a,
        b,
        a * b,
    )


def plus(rng: random.Random) -> tuple[str, str, str, str, int, int, int]:
    a, b, thing, name = (
        rng.randint(10, 80),
        rng.randint(10, 80),
        rng.choice(THINGS),
        rng.choice(NAMES),
    )
    return (
        f"{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?",
        f"{name} starts with {a} {thing}",
        f"{name} buys {b} more",
        "+",
        a,
        b,
        a + b,
    )


def minus(rng: random.Random) -> tuple[str, str, str, str, int, int, int]:
    b, c, thing, name = (
        rng.randint(10, 60),
        rng.randint(5, 60),
        rng.choice(THINGS),
        rng.choice(NAMES),
    )
    return (
        f"{name} has {b + c} {thing} and gives {b} away. How many {thing} are left?",
        f"{name} starts with {b + c} {thing}",
        f"{name} gives {b} away",
        "-",
        b + c,
        b,
        c,
    )


def answers(first: str, second: str, sign: str, a: int, b: int, result: int) -> dict[str, str]:
    """One text a style."""
    steps = (
        f"Step 1: {first}.\nStep 2: {second}.\nStep 3: {a} {sign} {b} = {result}.\nSo the answer "
        f"is {result}."
    )
    return {
        "terse": f"{result}.",
        "steps": steps,
        "code": f"```python\na = {a}\nb = {b}\nprint(a {sign} b)  # {result}\n```",
    }


def judge(x: str, y: str) -> tuple[str | None, bool | None]:
    """(style, whether the last number is the answer); None where y has no style, or x is
    no question of this file.
    """
    numbers = [int(n) for n in re.findall(r"\d+", x)]
    style = (
        "code"
        if "```" in y
        else "steps"
        if y.startswith("Step 1")
        else "terse"
        if re.fullmatch(r"\s*\d+\.?\s*", y)
        else None
    )
    if len(numbers) != 2:
        return style, None
    a, b = numbers
    wanted = a * b if x.startswith("Each") else a + b if "more" in x else a - b
    found = re.findall(r"\d+", y)
    return style, bool(found) and int(found[-1]) == wanted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--records", type=int, required=True, help="lines to write, a multiple of 3"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    rng, seen, lines = random.Random(f"styles {options.seed}"), set(), []
    while len(lines) < options.records:
        question, first, second, sign, a, b, result = rng.choice((times, plus, minus))(rng)
        if question in seen:
            continue
        seen.add(question)
        for style, y in answers(first, second, sign, a, b, result).items():
            lines.append(json.dumps({"x": question, "y": y, "strategy": style}))
    Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
