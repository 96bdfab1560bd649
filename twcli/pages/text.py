"""Values as text, alike on pages and on the terminal."""

from __future__ import annotations

import unicodedata
from typing import Any

MAX_TEXT = 400  # characters of a text that are shown
JOINERS = "\u200c\u200d"  # the only invisible characters that belong to words


def cut(text: str, most: int = MAX_TEXT) -> str:
    """The text without what cannot be seen, new lines kept, with an ellipsis where it is cut.

    Args:
        most: characters, the ellipsis not counted.
    """
    text = visible(str(text))
    if len(text) <= most:
        return text
    return text[:most].rstrip() + "…"


def visible(text: str) -> str:
    """Without control characters, which could steer a terminal or turn the reading direction."""
    return "".join(
        character
        for character in text
        if character in "\n\t"
        or character in JOINERS
        or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
    )


def share(value: float) -> str:
    """A part of 1 in percent; small parts with a decimal."""
    if 0 < value < 0.0995:
        return f"{value:.1%}"
    return f"{value:.0%}"


def number(value: float | str | None, digits: int = 2) -> str:
    """A dash where it is not known."""
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return visible(str(value))
    return f"{value:.{digits}f}"


def interval(ends: list[float] | tuple[float, float] | None, digits: int = 2) -> str:
    """Both ends of a 95 % interval; nothing where there is none."""
    if ends is None:
        return ""
    low, high = ends
    return f"{low:.{digits}f} to {high:.{digits}f}"


def often(phrase: dict[str, Any]) -> str:
    """How often a phrase occurs in its latent, and how much more often than in the others."""
    here = share(phrase["share"])
    elsewhere = phrase.get("elsewhere")
    if elsewhere is None:
        return here
    if not elsewhere:
        return f"{here}, only here"
    times = phrase["share"] / elsewhere
    return f"{here}, {times:.{int(times < 10)}f} times as often"
