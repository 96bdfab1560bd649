"""Word problems with one sum or one difference, answered in four ways."""

import random

from .sums_words import EQUATION, ITEMS, PROMPTS, STEPS, STORY, TERSE
from .text import best, expand, hits, numbers, person

STRATEGIES: tuple[str, ...] = ("terse", "steps", "equation", "story")

MINUS = r"\b(left|remain\w*|still|gave away|gives away|lost|sold|removes?)\b"


def make_prompt(rng: random.Random) -> tuple[str, dict]:
    """A word problem and its slots."""
    op = rng.choice("+-")
    b = rng.choice([n for n in range(12, 30) if n % 10])
    a = rng.choice([n for n in range(13, 70) if n % 10]) + (b if op == "-" else 0)
    slots = person(rng) | {"item": rng.choice(ITEMS), "a": a, "b": b, "op": op}
    slots["answer"] = a + b if op == "+" else a - b
    return expand(rng.choice(PROMPTS[op]), slots, rng), slots


def write(strategy: str, slots: dict, rng: random.Random) -> str:
    """A completion that takes the strategy."""
    a, b, op = slots["a"], slots["b"], slots["op"]
    sign = 1 if op == "+" else -1
    bt, ao, bo = b - b % 10, a % 10, b % 10
    p = rng.choice([n for n in range(3, b - 2) if n not in (bt, bo)])
    more = {"c": slots["answer"], "bt": bt, "bo": bo, "ta": a - ao, "ao": ao, "at": a + sign * bt}
    more |= {"tens": a - ao + bt, "ones": ao + bo, "o": a - bo, "p": p, "q": b - p}
    more |= {"m1": a + sign, "m2": a + 2 * sign}
    more |= {"m": a + sign * p, "v": rng.choice("nxkt"), "inv": "-" if op == "+" else "+"}
    pool = {"terse": TERSE, "steps": STEPS[op], "equation": EQUATION, "story": STORY[op]}[strategy]
    return expand(rng.choice(pool), slots | more, rng)


def solve(x: str) -> int | None:
    """The right answer to a prompt, by parsing it."""
    found = numbers(x)
    if len(found) != 2:
        return None
    return max(found) - min(found) if hits(MINUS, x) else sum(found)


def judge(x: str, y: str) -> tuple[str | None, bool | None]:
    """The strategy that y takes, and whether its last number is the answer to x."""
    found, truth = numbers(y), solve(x)
    right = bool(found) and found[-1] == truth if truth is not None else None
    scores = {
        "equation": 2 * hits(r"\b(?!a\b|i\b)[a-z] ?[=+-] ?|[=+-] [a-z]\b(?! \w)", y)
        + 2 * hits(r"\b(equation|formula|unknown|solv\w+|symbols|result =)", y)
        + hits(r"\b(let|write|call|suppose) (?!us\b)", y),
        "steps": 2 * hits(r"\b(tens|ones|steps?|split|break)\b", y)
        + hits(r"(^|\s)\d\. |\b(first|next|finally|second)\b", y)
        + hits(r"\d [+-] \d+ =", y),
        "story": 2 * hits(r"\b(picture|imagine|think of|story|once|count(s|ing)?|pile|row)\b", y)
        + hits(r"\b(s?he|we|they|more|fewer|others?|soon|starts?|begins)\b", y),
        "terse": 2.5 * (len(set(found)) == 1 and len(y.split()) <= 18),
    }
    return best(scores, 2), right
