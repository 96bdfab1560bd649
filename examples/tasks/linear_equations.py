"""Solve an equation of one unknown; four orders in which terms are collected and moved across.

    x   3 x + 5 + 5 x + 7 = 1 x + 40
    y   8 x + 12 = 1 x + 40 | 7 x + 12 = 40 | 7 x = 28 | x = 4                unknowns_first
        8 x + 12 = 1 x + 40 | 8 x = 1 x + 28 | 7 x = 28 | x = 4               constants_first
        8 x - 1 x = 40 - 12 | 7 x = 28 | x = 4                                both_at_once
        3 x + 5 x - 1 x = 40 - 5 - 7 | 8 x - 1 x = 35 - 7 | 7 x = 28 | x = 4  one_by_one

How often a strategy is taken depends on x. Judge: examples.tasks.linear_equations:judge
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from examples.tasks.task import Task, last_part

# Each number of a trace is one token, so the ranges keep all of them below 100.
COEFFICIENTS = range(1, 17)
CONSTANTS = range(1, 10)
SLOPES = range(2, 7)
SOLUTIONS = range(1, 13)
MANY = 13  # a right side of so many unknowns has many
PROMPT = re.compile(
    r"([1-9]\d?) x \+ ([1-9]\d?) \+ ([1-9]\d?) x \+ ([1-9]\d?) = ([1-9]\d?) x \+ ([1-9]\d?)",
    re.ASCII,
)


class Equation(NamedTuple):
    """a x + b + c x + d = e x + f"""

    a: int
    b: int
    c: int
    d: int
    e: int
    f: int

    @property
    def slope(self) -> int:
        return self.a + self.c - self.e

    @property
    def rest(self) -> int:
        return self.f - self.b - self.d


def sample_prompt(rng: random.Random) -> str:
    while True:
        a, b, c, d, slope, solution = map(
            rng.choice, (COEFFICIENTS, CONSTANTS, COEFFICIENTS, CONSTANTS, SLOPES, SOLUTIONS)
        )
        if a + c > slope:
            return f"{a} x + {b} + {c} x + {d} = {a + c - slope} x + {slope * solution + b + d}"


def parse(x: str) -> Equation:
    """The equation, which has a natural number as its solution and more unknowns on the left."""
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not an equation: {x!r}")
    equation = Equation(*map(int, match.groups()))
    if equation.slope < 1 or equation.rest < 0 or equation.rest % equation.slope:
        raise ValueError(f"not an equation with a natural solution: {x!r}")
    return equation


def solved(x: str, *lines: str) -> str:
    """The lines, what all of them lead to, and the solution."""
    equation = parse(x)
    return " | ".join([*lines, f"{equation.slope} x = {equation.rest}", answer(x)])


def unknowns_first(x: str) -> str:
    """Collects the left side, then moves the unknowns to the left, then
    the constants to the right.
    """
    a, b, c, d, e, f = parse(x)
    return solved(x, f"{a + c} x + {b + d} = {e} x + {f}", f"{a + c - e} x + {b + d} = {f}")


def constants_first(x: str) -> str:
    """Collects the left side, then moves the constants to the right, then
    the unknowns to the left.
    """
    a, b, c, d, e, f = parse(x)
    return solved(x, f"{a + c} x + {b + d} = {e} x + {f}", f"{a + c} x = {e} x + {f - b - d}")


def both_at_once(x: str) -> str:
    """Moves what it has collected in one go."""
    a, b, c, d, e, f = parse(x)
    return solved(x, f"{a + c} x - {e} x = {f} - {b + d}")


def one_by_one(x: str) -> str:
    """Moves every term as it stands, then takes them together from the left."""
    a, b, c, d, e, f = parse(x)
    return solved(
        x, f"{a} x + {c} x - {e} x = {f} - {b} - {d}", f"{a + c} x - {e} x = {f - b} - {d}"
    )


def weights(x: str) -> tuple[int, ...]:
    """Percent of each strategy: few unknowns on the right are mostly moved first, many
    together with the constants.
    """
    return (20, 5, 60, 15) if parse(x).e >= MANY else (60, 20, 15, 5)


def answer(x: str) -> str:
    equation = parse(x)
    return f"x = {equation.rest // equation.slope}"


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


TASK = Task(
    name="linear_equations",
    sample_prompt=sample_prompt,
    answer=answer,
    answer_is_right=answer_is_right,
    weights=weights,
    strategies={f.__name__: f for f in (unknowns_first, constants_first, both_at_once, one_by_one)},
)
judge = TASK.judge
