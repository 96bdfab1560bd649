"""Add up five numbers in one of five orders; the traces look alike but for the order.

    x   7 + 2 + 9 + 4 + 1
    y   7 | 9 | 18 | 22 | 23                                                 from_left
        1 | 5 | 14 | 16 | 23                                                 from_right
        9 | 16 | 20 | 22 | 23                                                largest_first
        1 | 3 | 7 | 14 | 23                                                  smallest_first
        9 | 13 | 1 | 22 | 23                                                 pairs

Judge: examples.tasks.number_sum:judge
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from itertools import accumulate

from examples.tasks.task import Task, last_part

NUMBERS = range(1, 20)
COUNT = 5
PROMPT = re.compile(r"([1-9]\d?)( \+ [1-9]\d?){4}", re.ASCII)


def sample_prompt(rng: random.Random) -> str:
    return " + ".join(map(str, rng.sample(NUMBERS, COUNT)))


def parse(x: str) -> list[int]:
    text = " ".join(x.split())
    if not PROMPT.fullmatch(text):
        raise ValueError(f"not a sum of five numbers: {x!r}")
    return [int(number) for number in text.split(" + ")]


def listed(numbers: Iterable[int]) -> str:
    return " | ".join(map(str, numbers))


def from_left(x: str) -> str:
    return listed(accumulate(parse(x)))


def from_right(x: str) -> str:
    return listed(accumulate(reversed(parse(x))))


def largest_first(x: str) -> str:
    return listed(accumulate(sorted(parse(x), reverse=True)))


def smallest_first(x: str) -> str:
    return listed(accumulate(sorted(parse(x))))


def pairs(x: str) -> str:
    """The first two, the next two, the last; then both sums, and all."""
    a, b, c, d, e = parse(x)
    return listed([a + b, c + d, e, a + b + c + d, a + b + c + d + e])


def answer(x: str) -> str:
    return str(sum(parse(x)))


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


TASK = Task(
    name="number_sum",
    sample_prompt=sample_prompt,
    answer=answer,
    answer_is_right=answer_is_right,
    strategies={
        f.__name__: f for f in (from_left, from_right, largest_first, smallest_first, pairs)
    },
)
judge = TASK.judge
