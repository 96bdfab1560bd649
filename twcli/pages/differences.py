"""Where texts differ from one another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

TOKEN = re.compile(r"\w+|[^\w\s]|\s+")


def marked(texts: Sequence[str]) -> list[list[tuple[str, bool]]]:
    """Each text in pieces, and whether no other text has its words beside the same word, on either
    side; alike for order and for words. Linear in the length of the texts.
    """
    token_lists = [TOKEN.findall(text) for text in texts]
    pair_lists = [_pairs(tokens) for tokens in token_lists]
    common = Counter(pair for pairs in pair_lists for pair in set(pairs))
    return [
        _runs(tokens, [common[pair] > 1 for pair in pairs])
        for tokens, pairs in zip(token_lists, pair_lists, strict=True)
    ]


def _pairs(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours, the text's ends included; spaces do not count."""
    words = ["", *(token for token in tokens if not token.isspace()), ""]
    return list(pairwise(words))


def _runs(tokens: Sequence[str], shared: Sequence[bool]) -> list[tuple[str, bool]]:
    """Tokens joined where they are marked alike; a space between two marked words is marked."""
    word = 0
    flags = []
    for token in tokens:
        if token.isspace():
            flags.append(False)
        else:
            flags.append(not (shared[word] or shared[word + 1]))
            word += 1
    for i in range(1, len(flags) - 1):
        flags[i] = flags[i] or (tokens[i].isspace() and flags[i - 1] and flags[i + 1])
    runs: list[tuple[str, bool]] = []
    for token, flag in zip(tokens, flags, strict=True):
        if runs and runs[-1][1] == flag:
            runs[-1] = runs[-1][0] + token, flag
        else:
            runs.append((token, flag))
    return runs
