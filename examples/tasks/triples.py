"""Write one number of three as two others and an operator between them: the arithmetic toy of
UpSkill (arXiv 2602.22296), after the description and settings that its authors published.

    x   2 6 3
    y   6 / 2       or 2 * 3, 3 * 2, 6 / 3

The strategy is the operator. Every triple is true of one operator at least, and half of them of
one alone. It is none of `TASKS`: there every strategy has an answer to every prompt.
Judge: examples.tasks.triples:judge
"""

from __future__ import annotations

import random
import re
from itertools import permutations

OPERATORS = "+-*/%"
NUMBERS = range(10)
PROMPT = re.compile(r"(\d) (\d) (\d)", re.ASCII)
EXPRESSION = re.compile(r"(\d) ([-+*/%]) (\d)", re.ASCII)


def value(a: int, operator: str, b: int) -> int | None:
    """The value of the expression; None where it is no whole number."""
    if operator in "/%" and b == 0:
        return None
    if operator == "/":
        return a // b if a % b == 0 else None
    return {"+": a + b, "-": a - b, "*": a * b, "%": a % b if b else 0}[operator]


def sample_prompt(rng: random.Random) -> str:
    """Two numbers and what an operator makes of them, in any order."""
    while True:
        a, b, operator = rng.choice(NUMBERS), rng.choice(NUMBERS), rng.choice(OPERATORS)
        result = value(a, operator, b)
        if result in NUMBERS:
            triple = [a, b, result]
            rng.shuffle(triple)
            return " ".join(map(str, triple))


def parse(x: str) -> list[int]:
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not three digits: {x!r}")
    return [int(digit) for digit in match.groups()]


def answers(x: str) -> list[str]:
    """All right expressions; first those of the first number, and of the others in their order."""
    triple, found = parse(x), []
    for place, target in enumerate(triple):
        others = triple[:place] + triple[place + 1 :]
        for a, b in permutations(others):
            found += [f"{a} {op} {b}" for op in OPERATORS if value(a, op, b) == target]
    return list(dict.fromkeys(found))


def judge(x: str, y: str) -> tuple[str | None, bool | None]:
    """(the operator, whether the expression of two numbers gives the third)."""
    try:
        right = answers(x)
    except (AttributeError, ValueError):
        return None, None
    match = EXPRESSION.fullmatch(" ".join(y.split()))
    return (match[2] if match else None), " ".join(y.split()) in right
