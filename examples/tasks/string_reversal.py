"""Reverse a row of letters in one of four ways.

    x   f a k c h b
    y   b a k c h f | b h k c a f | b h c k a f                              swap
        b | b h | b h c | b h c k | b h c k a | b h c k a f                  from_back
        f | a f | k a f | c k a f | h c k a f | b h c k a f                  to_front
        k a f | b h c | b h c k a f                                          halves

Judge: examples.tasks.string_reversal:judge
"""

from __future__ import annotations

import random
import re

from examples.tasks.task import Task, last_part

LETTERS = "abcdefghijkl"
LENGTHS = (5, 6, 7)
PROMPT = re.compile(r"[a-l]( [a-l])*")


def sample_prompt(rng: random.Random) -> str:
    """Five to seven letters, all different."""
    return " ".join(rng.sample(LETTERS, rng.choice(LENGTHS)))


def parse(x: str) -> list[str]:
    text = " ".join(x.split())
    if not PROMPT.fullmatch(text):
        raise ValueError(f"not a row of letters: {x!r}")
    return text.split()


def swap(x: str) -> str:
    """The outermost letters change places, then the next ones."""
    letters, parts = parse(x), []
    for left in range(len(letters) // 2):
        letters[left], letters[-1 - left] = letters[-1 - left], letters[left]
        parts.append(" ".join(letters))
    return " | ".join(parts)


def from_back(x: str) -> str:
    """The last letter is put down, then the one before it, behind what lies there."""
    letters = parse(x)[::-1]
    return " | ".join(" ".join(letters[: count + 1]) for count in range(len(letters)))


def to_front(x: str) -> str:
    """The first letter is put down, then the second in front of it."""
    letters = parse(x)
    return " | ".join(" ".join(letters[count::-1]) for count in range(len(letters)))


def halves(x: str) -> str:
    """Both halves are reversed, then they change places; a letter in the middle
    belongs to the right one.
    """
    letters = parse(x)
    left, right = letters[: len(letters) // 2][::-1], letters[len(letters) // 2 :][::-1]
    return " | ".join(map(" ".join, (left, right, right + left)))


def answer(x: str) -> str:
    return " ".join(parse(x)[::-1])


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


STRATEGIES = {"swap": swap, "from_back": from_back, "to_front": to_front, "halves": halves}
TASK = Task(
    name="string_reversal",
    sample_prompt=sample_prompt,
    strategies=STRATEGIES,
    answer=answer,
    answer_is_right=answer_is_right,
)
judge = TASK.judge
