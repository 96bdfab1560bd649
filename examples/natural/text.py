"""Small helpers that the task modules share: template expansion, names and number parsing."""

# ruff: noqa: SIM905 - word lists are split from text, many words a line

import random
import re

SHE = "Mia Anna Sofia Leila Ruth Nora Grace Ivy Clara Zoe Priya Hana Elena Maria Alice".split()
HE = "Tom Ben Omar Luca Jack Felix Sam Hugo Noah Ravi Peter Leo Daniel Kofi Marco".split()

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"(?<![\w:.])\d+(?![\w:]|\.\d)")


def expand(template: str, slots: dict, rng: random.Random) -> str:
    """Fill `{slot}` fields and resolve `[a|b|c]` choices (may nest); fix spaces and capitals."""
    while match := _CHOICE.search(template):
        chosen = rng.choice(match.group(1).split("|"))
        template = template[: match.start()] + chosen + template[match.end() :]
    text = re.sub(r" +", " ", template.format(**slots)).strip()
    text = re.sub(r" +([,.!?;:])", r"\1", text)
    return re.sub(r"(^|[.!?] )([a-z])(?! =)", lambda m: m.group(1) + m.group(2).upper(), text)


def person(rng: random.Random) -> dict[str, str]:
    """A random first name with its pronouns: slots `name`, `they`, `them` and `their`."""
    if rng.random() < 0.5:
        return {"name": rng.choice(SHE), "they": "she", "them": "her", "their": "her"}
    return {"name": rng.choice(HE), "they": "he", "them": "him", "their": "his"}


def numbers(text: str) -> list[int]:
    """All whole numbers in the text, in order; clock times and decimals are left out."""
    return [int(found) for found in _NUMBER.findall(text)]


def best(scores: dict[str, float], least: float = 1.0) -> str | None:
    """The key with the highest score, or None where it is below `least` or tied."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    if ranked[0][1] < least or ranked[0][1] == ranked[1][1]:
        return None
    return ranked[0][0]


def hits(pattern: str, text: str) -> int:
    """How many times the pattern occurs in the text, whatever the case."""
    return len(re.findall(pattern, text, re.IGNORECASE))
