"""Count a letter in a row of letters in one of four ways.

    x   a in b a c a a d
    y   b 0 a 1 c 1 a 2 a 3 d 3 | 3                                          tally
        a a a | 3                                                            pick
        2 4 5 | 3                                                            places
        b a c | 1 | a a d | 2 | 3                                            halves

Strategies are of unequal frequency. Judge: examples.tasks.letter_count:judge
"""

from __future__ import annotations

import random
import re

from examples.tasks.task import Task, last_part

LETTERS = "abcd"
LENGTHS = range(6, 11)
PROMPT = re.compile(r"([a-d]) in ([a-d](?: [a-d])*)")
WEIGHTS = (15, 50, 10, 25)  # percent, in the order of the strategies


def sample_prompt(rng: random.Random) -> str:
    return f"{rng.choice(LETTERS)} in {' '.join(rng.choices(LETTERS, k=rng.choice(LENGTHS)))}"


def parse(x: str) -> tuple[str, list[str]]:
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not a letter in a row of letters: {x!r}")
    return match[1], match[2].split()


def count_above_one(x: str) -> bool:
    """Of fewer letters the strategies differ little."""
    return int(answer(x)) > 1


def tally(x: str) -> str:
    """Each letter with the count so far."""
    letter, row = parse(x)
    return (
        " ".join(f"{seen} {row[: place + 1].count(letter)}" for place, seen in enumerate(row))
        + f" | {answer(x)}"
    )


def pick(x: str) -> str:
    """The letter as often as it is met."""
    letter, row = parse(x)
    return " | ".join([" ".join(seen for seen in row if seen == letter), answer(x)])


def places(x: str) -> str:
    """Where it stands, counted from one."""
    letter, row = parse(x)
    return " | ".join(
        [" ".join(str(place) for place, seen in enumerate(row, 1) if seen == letter), answer(x)]
    )


def halves(x: str) -> str:
    """Both halves with their counts; a letter in the middle belongs to the right one."""
    letter, row = parse(x)
    parts = []
    for half in (row[: len(row) // 2], row[len(row) // 2 :]):
        parts += [" ".join(half), str(half.count(letter))]
    return " | ".join([*parts, answer(x)])


def answer(x: str) -> str:
    letter, row = parse(x)
    return str(row.count(letter))


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


STRATEGIES = {"tally": tally, "pick": pick, "places": places, "halves": halves}
TASK = Task(
    name="letter_count",
    sample_prompt=sample_prompt,
    strategies=STRATEGIES,
    answer=answer,
    answer_is_right=answer_is_right,
    admits=count_above_one,
    weights=lambda x: WEIGHTS,
)
judge = TASK.judge
