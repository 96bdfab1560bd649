"""Everyday how-to questions, answered in four ways."""

import random

from .advice_topics import TOPICS
from .advice_words import EXAMPLE, LIST, PROMPTS, QUESTION, REASONS, WHEN
from .text import HE, SHE, best, expand, hits, person

STRATEGIES: tuple[str, ...] = ("list", "question", "reasons", "example")

POOLS = {"list": LIST, "question": QUESTION, "reasons": REASONS, "example": EXAMPLE}
NAME = rf"\b({'|'.join(SHE + HE)})\b"
PERSON = rf"{NAME}|\bmy (old |best )?(aunt|uncle|cousin|friend|neighbou?r|mother|grandmother)\b"
PAST = (
    r"\b(wanted|tried|decided|had|began|told|struggled|asked|chose|learned|did|started|could not|"
    r"saved|was|used to|met|managed|promised|gave up|went|made sure|worked|succeeded|found)\b"
)
MARK = r"(^|\s)(\d[.)]|\(\w\)|i+\)|[-*•] )|;"
ORDER = (
    r"\b(first|second|third|point one|point two|point three|top|bottom|(?<!shopping )list|then|"
    r"for one|for another|last|next)\b"
)
ASK = r"\b(ask yourself|i wonder|ask (me|you) back|tell me|my question|consider whether)\b"
CAUSE = (
    r"\b(because|since|as a result|therefore|hence|thus|consequently|so|that is why|follows|cause|"
    r"reason|explains|explanation|given that|trouble|problem|conclusion|lesson|logic|thinking|"
    r"nothing works|due to)\b"
)


def make_prompt(rng: random.Random) -> tuple[str, dict]:
    """A how-to question and its slots."""
    slots = person(rng) | rng.choice(TOPICS) | {"when": rng.choice(WHEN)}
    return expand(rng.choice(PROMPTS), slots, rng), slots


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def write(strategy: str, slots: dict, rng: random.Random) -> str:
    """A completion that takes the strategy; the tips come in random order."""
    tips = rng.sample([slots["t1"], slots["t2"], slots["t3"]], 3)
    more = {f"t{i}": tip for i, tip in enumerate(tips, 1)}
    more |= {f"T{i}": capital(tip) for i, tip in enumerate(tips, 1)}
    more["Why"] = capital(slots["why"])
    return expand(rng.choice(POOLS[strategy]), slots | more, rng)


def judge(x: str, y: str) -> tuple[str | None, bool | None]:
    """The strategy that y takes; advice has no right answer."""
    marks, people, asked = (
        hits(MARK, y),
        hits(PERSON, y),
        7 * hits(r"\?", y) / max(1, hits(r"[.!?](\s|$)", y)),
    )
    listed = hits(ORDER, y) + hits(r"\b((?<!shopping )list|points?|checklist|item|tips)\b", y)
    scores = {
        "list": 2 * marks + (listed if listed >= 2 else 0) + 0.5 * (marks > 0) * listed,
        "question": asked + 3 * hits(ASK, y),
        "reasons": 1.5 * hits(CAUSE, y) if asked < 4 else 0,
        "example": (2 * min(people, 2) + hits(PAST, y)) * (people > 0),
    }
    return best(scores, 1.5), None
