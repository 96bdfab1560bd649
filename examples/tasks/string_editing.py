"""Edit a row of letters; edit by edit or letter by letter, each in two orders.

    x   f a k c h b : drop h , a becomes e , d after c
    y   f a k c b | f e k c b | f e k c d b                                 in_order
        f a k c d h b | f e k c d h b | f e k c d b                         in_reverse
        f : f | a : e | k : k | c : c d | h : | b : b | f e k c d b         from_left
        b : b | h : | c : c d | k : k | a : e | f : f | f e k c d b         from_right

No two edits touch the same letter, so their order changes nothing. Judge:
examples.tasks.string_editing:judge
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from itertools import permutations

from examples.tasks.task import Task, last_part

LETTERS = "abcdefghijkl"
LENGTH = 6
ORDERS = list(permutations(range(3)))
PROMPT = re.compile(r"([a-l](?: [a-l])*) : (.+)")
DROP, BECOMES, AFTER = (
    re.compile(p) for p in (r"drop ([a-l])", r"([a-l]) becomes ([a-l])", r"([a-l]) after ([a-l])")
)


def sample_prompt(rng: random.Random) -> str:
    """Six letters and an edit of each kind."""
    *letters, changed, added = rng.sample(LETTERS, LENGTH + 2)
    one, two, three = rng.sample(letters, 3)
    edits = f"drop {one}", f"{two} becomes {changed}", f"{added} after {three}"
    return f"{' '.join(letters)} : {' , '.join(edits[i] for i in rng.choice(ORDERS))}"


def parse(x: str) -> tuple[list[str], dict[str, list[str]]]:
    """The letters and, in the order of the edits, what an edited letter turns into."""
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not an editing: {x!r}")
    letters, edits = match[1].split(), list(map(parse_edit, match[2].split(" , ")))
    images = dict(edits)
    new = [letter for edited, image in edits for letter in image if letter != edited]
    apart = len(images) == len(edits) and len({*letters, *new}) == len(letters) + len(new)
    # More letters than edits, lest all of them are dropped.
    if not apart or not images.keys() <= set(letters) or len(letters) <= len(edits):
        raise ValueError(f"edits that get in each other's way: {x!r}")
    return letters, images


def parse_edit(edit: str) -> tuple[str, list[str]]:
    if match := DROP.fullmatch(edit):
        return match[1], []
    if match := BECOMES.fullmatch(edit):
        return match[1], [match[2]]
    if match := AFTER.fullmatch(edit):
        return match[2], [match[2], match[1]]
    raise ValueError(f"not an edit: {edit!r}")


def edited(letters: Iterable[str], images: dict[str, list[str]]) -> list[str]:
    return [new for letter in letters for new in images.get(letter, [letter])]


def edit_by_edit(order: Callable[[Iterable], Iterable]) -> Callable[[str], str]:
    """All letters after each edit."""

    def strategy(x: str) -> str:
        letters, images = parse(x)
        parts = []
        for letter in order(images):
            letters = edited(letters, {letter: images[letter]})
            parts.append(" ".join(letters))
        return " | ".join(parts)

    return strategy


def letter_by_letter(order: Callable[[Iterable], Iterable]) -> Callable[[str], str]:
    """Each letter and what it turns into."""

    def strategy(x: str) -> str:
        letters, images = parse(x)
        return " | ".join(
            [
                *(" ".join([letter, ":", *edited([letter], images)]) for letter in order(letters)),
                answer(x),
            ]
        )

    return strategy


def answer(x: str) -> str:
    return " ".join(edited(*parse(x)))


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


STRATEGIES = {
    "in_order": edit_by_edit(iter),
    "in_reverse": edit_by_edit(reversed),
    "from_left": letter_by_letter(iter),
    "from_right": letter_by_letter(reversed),
}
TASK = Task(
    name="string_editing",
    sample_prompt=sample_prompt,
    strategies=STRATEGIES,
    answer=answer,
    answer_is_right=answer_is_right,
)
judge = TASK.judge
