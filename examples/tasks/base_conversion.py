"""Convert twenty binary digits to five hexadecimal ones; three ways to read four digits as one.

    x   1 0 1 1 0 0 1 0 1 1 0 1 0 0 1 1 0 1 1 0
    y   1 0 1 1 b | 0 0 1 0 2 | 1 1 0 1 d | 0 0 1 1 3 | 0 1 1 0 6 | b 2 d 3 6       groups
        1 2 5 b | 0 0 1 2 | 1 3 6 d | 0 0 1 3 | 0 1 3 6 | b 2 d 3 6                 doubling
        2 3 0 2 3 1 0 3 1 2 | b 2 d 3 6                                             base_four

Every y ends in the hexadecimal digits. Judge: examples.tasks.base_conversion:judge
"""

from __future__ import annotations

import random
import re
from itertools import accumulate

from examples.tasks.task import Task, last_part

GROUP = 4  # binary digits that make a hexadecimal one
DIGITS = 5
PROMPT = re.compile(rf"[01](?: [01]){{{GROUP * DIGITS - 1}}}", re.ASCII)


def show(numbers: list[int]) -> str:
    return " ".join(f"{number:x}" for number in numbers)


def sample_prompt(rng: random.Random) -> str:
    return " ".join(f"{rng.getrandbits(GROUP * DIGITS):0{GROUP * DIGITS}b}")


def parse(x: str, size: int = GROUP) -> list[list[int]]:
    """The binary digits in groups of `size`, from the left."""
    text = " ".join(x.split())
    if not PROMPT.fullmatch(text):
        raise ValueError(f"not {GROUP * DIGITS} binary digits: {x!r}")
    bits = list(map(int, text.split()))
    return [bits[i : i + size] for i in range(0, len(bits), size)]


def prefixes(bits: list[int]) -> list[int]:
    """Value of the first digit, the first two, ...: twice the value before and the next digit."""
    return list(accumulate(bits, lambda value, bit: 2 * value + bit))


def value(bits: list[int]) -> int:
    return prefixes(bits)[-1]


def groups(x: str) -> str:
    """Four digits and what they make."""
    return " | ".join([*(show([*bits, value(bits)]) for bits in parse(x)), answer(x)])


def doubling(x: str) -> str:
    """The value after each of four digits."""
    return " | ".join([*(show(prefixes(bits)) for bits in parse(x)), answer(x)])


def base_four(x: str) -> str:
    """Two digits become one of base four, then two of those one of base sixteen."""
    return f"{show([value(bits) for bits in parse(x, 2)])} | {answer(x)}"


def answer(x: str) -> str:
    return show([value(bits) for bits in parse(x)])


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


TASK = Task(
    name="base_conversion",
    sample_prompt=sample_prompt,
    answer=answer,
    answer_is_right=answer_is_right,
    strategies={f.__name__: f for f in (groups, doubling, base_four)},
)
judge = TASK.judge
