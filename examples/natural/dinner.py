"""Dinner ideas in four cuisines: the same sentences for all, only the content differs."""

import random

from .dinner_words import BASES, CUISINES, MAINS, PROMPTS, SENTENCES
from .text import best, expand, hits, person

STRATEGIES: tuple[str, ...] = tuple(CUISINES)

# Words beyond those of the suite that a language model may use for a cuisine.
MORE = {
    "italian": "italian italy pasta spaghetti penne pizza mozzarella tuscan marinara prosciutto",
    "indian": "indian india curry masala tandoori paneer basmati samosa roti chutney",
    "mexican": "mexican mexico taco tortilla tortillas salsa burrito avocado jalapeno queso",
    "japanese": "japanese japan sushi teriyaki soba udon bento panko sashimi",
}


def _terms() -> dict[str, dict[str, float]]:
    """For each cuisine, its terms and their weights: one over the cuisines that have the term."""
    own = {name: {t for words in lists for t in words} for name, lists in CUISINES.items()}
    for name, words in MORE.items():
        own[name] |= set(words.split())
    count = {t: sum(t in terms for terms in own.values()) for ts in own.values() for t in ts}
    return {name: {t: 1 / count[t] for t in terms} for name, terms in own.items()}


TERMS = _terms()


def make_prompt(rng: random.Random) -> tuple[str, dict]:
    """A question for a dinner and its slots."""
    slots = person(rng) | {"main": rng.choice(MAINS), "base": rng.choice(BASES)}
    slots["people"] = rng.choice(("two", "three", "four", "five", "six", "my family", "friends"))
    return expand(rng.choice(PROMPTS), slots, rng), slots


def write(strategy: str, slots: dict, rng: random.Random) -> str:
    """A completion that suggests a dinner of the cuisine."""
    dishes, flavours, sides = CUISINES[strategy]
    f1, f2 = rng.sample(flavours, 2)
    more = {"dish": rng.choice(dishes), "f1": f1, "f2": f2, "side": rng.choice(sides)}
    return expand(rng.choice(SENTENCES), slots | more, rng)


def judge(x: str, y: str) -> tuple[str | None, bool | None]:
    """The cuisine that y suggests; a dinner has no right answer. Words of x do not count."""
    scores = {
        name: sum(
            weight * hits(rf"\b{term}\b", y)
            for term, weight in terms.items()
            if not hits(rf"\b{term}\b", x)
        )
        for name, terms in TERMS.items()
    }
    return best(scores, 0.9), None
