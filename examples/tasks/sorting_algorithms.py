"""Sort five numbers; four algorithms that show in the order in which numbers find their places.

    x   14 3 9 0 7
    y   0 3 9 14 7 | 0 3 9 14 7 | 0 3 7 14 9 | 0 3 7 9 14       selection_min

y is the list after each of the four outer passes. Judge: examples.tasks.sorting_algorithms:judge
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from examples.tasks.task import Task, last_part

COUNT = 5
LIMIT = 20  # numbers are 0 ... 19
NUMBER = re.compile(r"0|[1-9][0-9]*", re.ASCII)


def sample_prompt(rng: random.Random) -> str:
    return " ".join(map(str, rng.sample(range(LIMIT), COUNT)))


def parse(x: str) -> list[int]:
    tokens = x.split()
    if len(tokens) < 2 or not all(map(NUMBER.fullmatch, tokens)):
        raise ValueError(f"not a list of numbers: {x!r}")
    return [int(token) for token in tokens]


def selection_min(values: list[int]) -> Iterator[list[int]]:
    """Swaps the smallest of the rest to the front of the rest."""
    for i in range(len(values) - 1):
        j = values.index(min(values[i:]), i)
        values[i], values[j] = values[j], values[i]
        yield values


def selection_max(values: list[int]) -> Iterator[list[int]]:
    """Swaps the largest of the rest to the end of the rest."""
    for end in range(len(values) - 1, 0, -1):
        j = values.index(max(values[: end + 1]))
        values[end], values[j] = values[j], values[end]
        yield values


def insertion(values: list[int]) -> Iterator[list[int]]:
    """Inserts the next number into the sorted front."""
    for i in range(1, len(values)):
        values[: i + 1] = sorted(values[: i + 1])
        yield values


def bubble(values: list[int]) -> Iterator[list[int]]:
    """Swaps neighbours in wrong order from left to right."""
    for end in range(len(values) - 1, 0, -1):
        for i in range(end):
            if values[i] > values[i + 1]:
                values[i], values[i + 1] = values[i + 1], values[i]
        yield values


def traced(algorithm: Callable[[list[int]], Iterator[list[int]]]) -> Callable[[str], str]:
    def strategy(x: str) -> str:
        return " | ".join(" ".join(map(str, values)) for values in algorithm(parse(x)))

    return strategy


def answer(x: str) -> str:
    return " ".join(map(str, sorted(parse(x))))


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


TASK = Task(
    name="sorting_algorithms",
    sample_prompt=sample_prompt,
    answer=answer,
    answer_is_right=answer_is_right,
    strategies={f.__name__: traced(f) for f in (selection_min, selection_max, insertion, bubble)},
)
judge = TASK.judge
