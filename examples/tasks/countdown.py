"""Reach a number by adding and subtracting some of three others: depth first or breadth first, each
of which looks at six results and so finds what the other does not.

    x   3 5 7 = 15
    y   8 15 | 3 + 5 = 8 , 8 + 7 = 15       depth
        8 2 10 4 12 2 | none                breadth

Each pair is first added, then subtracted. Depth first combines a result with the number that is
left before it looks at the next; breadth first looks at all pairs. What follows the bar are the
steps to the target. Nine of ten completions go depth first. It is none of `TASKS`, in which every
strategy is right. Judge: examples.tasks.countdown:judge
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import combinations, islice

from examples.tasks.task import Task, last_part

NUMBERS = range(1, 8)
BUDGET = 6  # results that a search looks at
WEIGHTS = (0.9, 0.1)  # depth, breadth
PROMPT = re.compile(r"([1-9]\d?) ([1-9]\d?) ([1-9]\d?) = (\d{1,2})", re.ASCII)
STEP = re.compile(r"(\d{1,2}) ([+-]) (\d{1,2}) = (\d{1,2})", re.ASCII)
NONE = "none"
# how often a target is one that only depth, only breadth, both or neither finds
KINDS = {"depth": 0.35, "breadth": 0.35, "both": 0.2, "neither": 0.1}

Step = tuple[int, str, int, int]


def parse(x: str) -> tuple[list[int], int]:
    """(three different numbers, the target)."""
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not a countdown: {x!r}")
    *numbers, target = map(int, match.groups())
    if len(set(numbers)) < 3 or any(number not in NUMBERS for number in numbers):
        raise ValueError(f"not three different numbers: {x!r}")
    return numbers, target


def both_ways(a: int, b: int) -> list[Step]:
    """The sum, and the difference without its sign."""
    return [(a, "+", b, a + b), (max(a, b), "-", min(a, b), abs(a - b))]


def depth_first(numbers: list[int]) -> Iterator[list[Step]]:
    """The steps to each result, in the order in which they are looked at."""
    for a, b in combinations(numbers, 2):
        (left,) = (n for n in numbers if n not in (a, b))
        for first in both_ways(a, b):
            yield [first]
            for second in both_ways(first[3], left):
                yield [first, second]


def breadth_first(numbers: list[int]) -> Iterator[list[Step]]:
    for a, b in combinations(numbers, 2):
        for first in both_ways(a, b):
            yield [first]


SEARCHES = {"depth": depth_first, "breadth": breadth_first}


def search(name: str):
    def trace(x: str) -> str:
        numbers, target = parse(x)
        seen: list[str] = []
        for steps in islice(SEARCHES[name](numbers), BUDGET):
            seen.append(str(steps[-1][3]))
            if steps[-1][3] == target:
                return f"{' '.join(seen)} | {spelled(steps)}"
        return f"{' '.join(seen)} | {NONE}"

    return trace


def spelled(steps: list[Step]) -> str:
    return " , ".join(f"{a} {sign} {b} = {result}" for a, sign, b, result in steps)


def found(name: str, numbers: list[int]) -> set[int]:
    return {steps[-1][3] for steps in islice(SEARCHES[name](numbers), BUDGET)}


def sample_prompt(rng: random.Random) -> str:
    while True:
        numbers = rng.sample(NUMBERS, 3)
        depth, breadth = found("depth", numbers), found("breadth", numbers)
        targets = {
            "depth": depth - breadth,
            "breadth": breadth - depth,
            "both": depth & breadth,
            "neither": set(range(1, 2 * NUMBERS[-1])) - depth - breadth,
        }
        (kind,) = rng.choices(list(KINDS), weights=list(KINDS.values()))
        if targets[kind]:
            target = rng.choice(sorted(targets[kind]))
            return f"{' '.join(map(str, numbers))} = {target}"


def answer(x: str) -> str:
    """Steps to the target, by whichever search finds them; `none` where neither does."""
    solutions = [search(name)(x).rpartition("| ")[2] for name in SEARCHES]
    return next((steps for steps in solutions if steps != NONE), NONE)


def answer_is_right(x: str, tokens: list[str]) -> bool:
    """Whether what follows the bar are true steps from the numbers to the target."""
    numbers, target = parse(x)
    left, result = list(numbers), None
    for text in last_part(tokens).split(" , "):
        match = STEP.fullmatch(text)
        if not match:
            return False
        a, sign, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
        for used in (a, b):
            if used not in left:
                return False
            left.remove(used)
        if result != (a + b if sign == "+" else a - b):
            return False
        left.append(result)
    return result == target


TASK = Task(
    name="countdown",
    sample_prompt=sample_prompt,
    strategies={name: search(name) for name in SEARCHES},
    answer=answer,
    answer_is_right=answer_is_right,
    weights=lambda _x: WEIGHTS,
)
judge = TASK.judge
