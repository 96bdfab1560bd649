"""Find the letters that two rows have in common, in one of four ways.

    x   f a c g and c k g b
    y   f - a - c + g + | c g                                                first_row
        c + k - g + b - | c g                                                second_row
        a f | b k | c g                                                      strike
        a 1 b 2 c 3 f 1 g 3 k 2 | c g                                        alphabet

Judge: examples.tasks.common_letters:judge
"""

from __future__ import annotations

import random
import re

from examples.tasks.task import Task, last_part

LETTERS = "abcdefghijkl"
LENGTHS = (4, 5, 6)
PROMPT = re.compile(r"([a-l](?: [a-l])*) and ([a-l](?: [a-l])*)")


def sample_prompt(rng: random.Random) -> str:
    """Two rows of as many letters each, of which one to three are in both."""
    length, shared = rng.choice(LENGTHS), rng.choice((1, 2, 3))
    letters = rng.sample(LETTERS, 2 * length - shared)
    one, other = letters[:length], letters[length - shared :]
    rng.shuffle(one)
    rng.shuffle(other)
    return f"{' '.join(one)} and {' '.join(other)}"


def parse(x: str) -> tuple[list[str], list[str]]:
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not two rows of letters: {x!r}")
    return match[1].split(), match[2].split()


def looked_up(row: list[str], other: list[str]) -> str:
    return " ".join(f"{letter} {'+' if letter in other else '-'}" for letter in row)


def first_row(x: str) -> str:
    """Each letter of the first row, and whether the second has it."""
    one, other = parse(x)
    return f"{looked_up(one, other)} | {answer(x)}"


def second_row(x: str) -> str:
    """Each letter of the second row, and whether the first has it."""
    one, other = parse(x)
    return f"{looked_up(other, one)} | {answer(x)}"


def strike(x: str) -> str:
    """What only the first row has, what only the second has, and the rest."""
    one, other = map(set, parse(x))
    return " | ".join(
        " ".join(sorted(letters)) for letters in (one - other, other - one, one & other)
    )


def alphabet(x: str) -> str:
    """All letters in alphabetical order with the rows that have them: 1, 2, or 3 for both."""
    one, other = parse(x)
    marks = (
        f"{letter} {(letter in one) + 2 * (letter in other)}" for letter in sorted({*one, *other})
    )
    return f"{' '.join(marks)} | {answer(x)}"


def answer(x: str) -> str:
    one, other = parse(x)
    return " ".join(sorted({*one} & {*other}))


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


STRATEGIES = {
    "first_row": first_row,
    "second_row": second_row,
    "strike": strike,
    "alphabet": alphabet,
}
TASK = Task(
    name="common_letters",
    sample_prompt=sample_prompt,
    strategies=STRATEGIES,
    answer=answer,
    answer_is_right=answer_is_right,
)
judge = TASK.judge
