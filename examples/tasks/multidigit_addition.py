"""Add two three-digit numbers; four ways that show in which digits are taken up first.

    x   3 4 7 + 2 8 5
    y   7 5 0 : 1 2 | 4 8 1 : 1 3 | 3 2 1 : 0 6 | 0 6 3 2        columns
        3 2 : 0 5 0 0 | 4 8 : 0 6 2 0 | 7 5 : 0 6 3 2            places
        3 4 7 | 2 : 0 5 4 7 | 8 : 0 6 2 7 | 5 : 0 6 3 2          running
        2 8 5 | 3 : 0 5 8 5 | 4 : 0 6 2 5 | 7 : 0 6 3 2          running_swapped

Every y ends in the four digits of the sum. Judge: examples.tasks.multidigit_addition:judge
"""

from __future__ import annotations

import random
import re

from examples.tasks.task import Task

PROMPT = re.compile(r"(\d) (\d) (\d) \+ (\d) (\d) (\d)", re.ASCII)
PLACES = (100, 10, 1)


def show(number: int, width: int = 4) -> str:
    return " ".join(f"{number:0{width}d}")


def sample_prompt(rng: random.Random) -> str:
    return f"{show(rng.randrange(100, 1000), 3)} + {show(rng.randrange(100, 1000), 3)}"


def parse(x: str) -> tuple[list[int], list[int]]:
    """Digits of both numbers, hundreds first."""
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not an addition: {x!r}")
    digits = list(map(int, match.groups()))
    return digits[:3], digits[3:]


def value(digits: list[int]) -> int:
    return sum(digit * place for digit, place in zip(digits, PLACES, strict=True))


def columns(x: str) -> str:
    """From the right: both digits and the carry, then the new carry and the digit of the sum."""
    carry, parts = 0, []
    for a, b in reversed(list(zip(*parse(x), strict=True))):
        total = a + b + carry
        parts.append(f"{a} {b} {carry} : {show(total, 2)}")
        carry = total // 10
    return " | ".join([*parts, answer(x)])


def places(x: str) -> str:
    """From the left: both digits of a place, then the sum of the places so far."""
    total, parts = 0, []
    for a, b, place in zip(*parse(x), PLACES, strict=True):
        total += (a + b) * place
        parts.append(f"{a} {b} : {show(total)}")
    return " | ".join(parts)


def running_total(first: list[int], second: list[int]) -> str:
    """The first number, then each digit of the second, hundreds first,
    and the total with it added.
    """
    total, parts = value(first), [show(value(first), 3)]
    for digit, place in zip(second, PLACES, strict=True):
        total += digit * place
        parts.append(f"{digit} : {show(total)}")
    return " | ".join(parts)


def running(x: str) -> str:
    a, b = parse(x)
    return running_total(a, b)


def running_swapped(x: str) -> str:
    a, b = parse(x)
    return running_total(b, a)


def answer(x: str) -> str:
    return show(sum(map(value, parse(x))))


def answer_is_right(x: str, tokens: list[str]) -> bool:
    """The last run of digits in y is the sum."""
    return " ".join(re.split(r"[|:]", " ".join(tokens))[-1].split()) == answer(x)


TASK = Task(
    name="multidigit_addition",
    sample_prompt=sample_prompt,
    answer=answer,
    answer_is_right=answer_is_right,
    strategies={f.__name__: f for f in (columns, places, running, running_swapped)},
)
judge = TASK.judge
