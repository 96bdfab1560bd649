"""What sets each latent apart: its distinctive words and phrases, and its most typical completions.

Phrases are n-grams of 1 to 3 tokens, ranked by the log-odds ratio with an informative Dirichlet
prior of Monroe, Colaresi and Quinn 2008, "Fightin' Words", Political Analysis 16(4), eq. 15, 16
and 22. Shapes: N completions, K latents, T tokens of all completions, V tokens of the vocabulary,
G different phrases.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import sparse

MAX_TOKENS_A_PHRASE = 3
MAX_CHARACTERS = 2000  # of a completion that are looked at: bounds time and memory
MIN_Z = 1.96  # below it a phrase may well be chance
MIN_SHARE = 0.02  # of a latent's completions: rarer is no habit, and of so many some pass by chance
MIN_COMPLETIONS = 3  # fewer cannot reach that z, not even where a single small latent has them all
SAME_COUNT = 0.9  # counts closer than this are taken for the same stretch of text
MAX_SHOWN = 60  # characters of a phrase

START, NEWLINE, NUMBER = "^", "⏎", "#"
CLOSING = frozenset(".,;:!?)]}%…、。，；：！？）」』")  # noqa: RUF001 - full-width on purpose
OPENING = frozenset("([{$（「『")  # noqa: RUF001
# Scripts written without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana and Han.
UNSPACED = (
    "\u0e01-\u0e4f\u0e80-\u0ecf\u0f00-\u0fff\u1000-\u109f\u1780-\u17df\u3005-\u3007\u3040-\u309f"
    "\u30a0-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
LIST_MARKER = re.compile(
    r"(?:\d{1,3}(?P<numbered>[.)])|(?P<bullet>[-*+>\u2022\u2013\u2014])|#{1,6})(?=\s)"
)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase that a latent's completions have and the others lack.

    Attributes:
        text: lower case; `#` for any number, `^` for the start of the completion, `⏎` for a new
            line, `1.` or `1)` for a numbered list, `- ` for a bullet and `## ` for a heading.
        z: log-odds ratio over its standard error, latent against all the others; at least 1.96.
        count: completions of the latent that have it.
        share: of the latent's completions, 0.02 to 1.
        elsewhere: share of the other latents' completions that have it, 0 to 1.
    """

    text: str
    z: float
    count: int
    share: float
    elsewhere: float


def distinctive_phrases(
    texts: Sequence[str], latent_N: np.ndarray, latents: int, top: int = 8
) -> list[list[Phrase]]:
    """The phrases that set each latent apart from all the others, the most distinctive first.

    A phrase counts once a completion, so that long completions do not win, and no phrase repeats
    another that is shown. A latent has fewer than `top`, or none, where no more differ from
    chance: so has one without completions, and so have all where a single latent has completions.
    Deterministic; some seconds for 20,000 texts.

    Args:
        texts: N completions; the first 2000 characters of each are looked at.
        latent_N: (N,) integers, 0 to K - 1; -1 leaves a completion out.
        top: phrases a latent, at most.

    Returns:
        K lists.

    Raises:
        ValueError: N differs, or a latent is K or more.
    """
    latent_N = np.asarray(latent_N)
    if len(texts) != len(latent_N):
        raise ValueError(f"{len(texts)} texts and {len(latent_N)} latents")
    if len(latent_N) and latent_N.max() >= latents:
        raise ValueError(f"latent {latent_N.max()} of {latents}")
    rows = np.flatnonzero(latent_N >= 0)
    size_K = np.bincount(latent_N[rows], minlength=latents)
    if np.count_nonzero(size_K) < 2:  # nothing to be set apart from
        return [[] for _ in range(latents)]
    vocabulary, token_T, text_T = _tokenised([texts[row] for row in rows.tolist()])
    grams = _counted(token_T, text_T, len(vocabulary), latent_N[rows], latents)
    words = list(vocabulary)
    return [_chosen(grams, k, size_K, words, top) for k in range(latents)]


def typical_rows(
    probability_N: np.ndarray,
    latent_N: np.ndarray,
    distance_N: np.ndarray | None,
    latents: int,
    count: int,
) -> list[np.ndarray]:
    """The most typical completions of each latent: the surest, of these the nearest, then by row.

    Args:
        probability_N: (N,) how sure the latent is; NaN comes last.
        latent_N: (N,) integers, -1 for none.
        distance_N: (N,) to the latent's centre, None where there is none.
        count: rows a latent, at most.

    Returns:
        K arrays of different rows, int64, each of `count` or as many as the latent has.
    """
    unsure_N = np.nan_to_num(-np.asarray(probability_N, np.float64), nan=np.inf)
    found = []
    for k in range(latents):
        rows = np.flatnonzero(latent_N == k)
        if count < len(rows):  # only what may be among the first is sorted
            rows = rows[unsure_N[rows] <= np.partition(unsure_N[rows], count)[count]]
        if distance_N is None:
            distance = np.zeros(len(rows))
        else:
            distance = distance_N[rows]
        found.append(rows[np.lexsort((rows, distance, unsure_N[rows]))][:count])
    return found


# Texts to tokens


class _Vocabulary(dict[str, int]):
    """The number of each token, given when it is first met."""

    def __missing__(self, token: str) -> int:
        number = self[token] = len(self)
        return number


def _tokenised(texts: Sequence[str]) -> tuple[_Vocabulary, np.ndarray, np.ndarray]:
    """The vocabulary, and of each token its number and its text's: (T,) int64 both, in order."""
    texts = [unicodedata.normalize("NFC", text[:MAX_CHARACTERS]).lower() for text in texts]
    ignored, pattern = _alphabet({character for text in texts for character in set(text)})
    vocabulary = _Vocabulary()
    numbers: list[int] = []
    lengths = []
    for text in texts:
        before = len(numbers)
        numbers += [vocabulary[token] for token in _tokens(text.translate(ignored), pattern)]
        lengths.append(len(numbers) - before)
    text_T = np.repeat(np.arange(len(texts)), lengths)
    return vocabulary, np.array(numbers, np.int64), text_T


def _alphabet(characters: Iterable[str]) -> tuple[dict[int, None], re.Pattern[str]]:
    """Characters that are not seen, and the pattern of a token.

    Python's `\\w` leaves out the vowel signs of Indic scripts and other marks: what of them occurs
    is put into the pattern, with the joiners that occur within words.
    """
    ignored: dict[int, None] = {}
    marks = ["\u200c\u200d"]
    for character in sorted(characters):
        category = unicodedata.category(character)
        if category.startswith("M"):
            marks.append(re.escape(character))
        elif category in ("Cc", "Cf", "Cs") and not character.isspace():
            ignored[ord(character)] = None
    for joiner in "\u200c\u200d":
        ignored.pop(ord(joiner), None)
    mark = f"[{''.join(marks)}]*"
    word = rf"(?:[^\W\d_{UNSPACED}]{mark})+"
    return ignored, re.compile(
        rf"\d+(?:[.,]\d+)*|[{UNSPACED}]{mark}|{word}(?:['\u2019]{word})*"
        rf"|[-=]+>|\*+|-+|\.+|=+|`+|\#+|\$+|_+|[^\w\s]{mark}"
    )


def _tokens(text: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """The text's words and signs, with marks where lines begin."""
    before = START
    for line in text.splitlines():
        line = line.strip()
        if not line:
            continue
        yield before
        before = NEWLINE
        position = 0
        marker = LIST_MARKER.match(line)
        if marker:
            position = marker.end()
            yield _list_marker(marker)
        for token in pattern.findall(line, position):
            yield NUMBER if token[0].isdecimal() else token


def _list_marker(marker: re.Match[str]) -> str:
    """One token for all lines of a list: an item's number and a heading's level are content."""
    if marker["numbered"]:
        return "1" + marker["numbered"]
    sign = marker["bullet"] or "##"
    return f"{sign} "


# Tokens to phrases


@dataclass(frozen=True)
class _Grams:
    """The different phrases that enough completions have.

    Attributes:
        tokens_GM: (G, 3) int64, the numbers of their tokens, -1 behind the last.
        count_KG: (K, G) sparse int64, completions of each latent that have them.
        total_G: (G,) int64, completions of any latent that have them.
    """

    tokens_GM: np.ndarray
    count_KG: sparse.csr_array
    total_G: np.ndarray


def _counted(
    token_T: np.ndarray, text_T: np.ndarray, vocabulary: int, latent_N: np.ndarray, latents: int
) -> _Grams:
    """The n-grams of each length, those that begin and end in the same text."""
    tokens, counts = [], []
    gram_T = token_T  # which n-gram begins at each token
    kept_T = np.ones(len(token_T), bool)
    for length in range(1, MAX_TOKENS_A_PHRASE + 1):
        if length > 1:  # the n-gram before, and the token behind it
            end = length - 1
            kept_T = kept_T[:-1] & (text_T[: len(kept_T) - 1] == text_T[end:])
            gram_T = gram_T[:-1] * vocabulary + token_T[end:]
        begins = np.flatnonzero(kept_T)
        gram_T[begins], first_G = _numbered(gram_T[begins])
        pairs = np.sort(gram_T[begins] * len(latent_N) + text_T[begins])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # once a completion
        gram, text = np.divmod(pairs, len(latent_N))
        enough_G = np.bincount(gram, minlength=len(first_G)) >= MIN_COMPLETIONS
        # A longer phrase is no more frequent than what it begins with: the rest is left out.
        kept_T[begins] = enough_G[gram_T[begins]]
        number_G = np.cumsum(enough_G) - 1
        enough = enough_G[gram]
        ones = np.ones(np.count_nonzero(enough), np.int64)
        places = latent_N[text[enough]], number_G[gram[enough]]
        counts.append(sparse.csr_array((ones, places), (latents, np.count_nonzero(enough_G))))
        places = begins[first_G[enough_G]][:, None] + np.arange(length)
        padding = np.full((len(places), MAX_TOKENS_A_PHRASE - length), -1)
        tokens.append(np.concatenate([token_T[places], padding], axis=1))
    count_KG = sparse.csr_array(sparse.hstack(counts))
    return _Grams(np.concatenate(tokens), count_KG, count_KG.sum(0))


def _numbered(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes as numbers from 0 on, and where each number occurs first."""
    _, first, numbers = np.unique(codes, return_index=True, return_inverse=True)
    return numbers, first


def _z_scores(count: np.ndarray, prior: np.ndarray, size: int, total: int) -> np.ndarray:
    """z-scores of the log-odds ratio of one latent against the others; -inf for phrases of all.

    Every phrase is a draw of its own, once a completion. The prior is the pooled counts, so that a
    rare phrase has to be much more frequent than a common one. Both terms of each variance are
    kept: the paper leaves one out for words that are rare, and a phrase may be in most completions.

    Args:
        count: completions of the latent that have each phrase.
        prior: completions of any latent that have it.
        size: completions of the latent.
        total: completions of any latent.
    """
    z = np.full(len(count), -np.inf)
    kept = prior < total  # what all have says nothing, and its odds are infinite
    count, prior = count[kept], prior[kept]
    have, have_others = count + prior, 2 * prior - count
    lack, lack_others = size + total - have, 2 * total - size - have_others
    ratio = np.log(have / lack) - np.log(have_others / lack_others)
    z[kept] = ratio / np.sqrt(1 / have + 1 / lack + 1 / have_others + 1 / lack_others)
    return z


def _chosen(
    grams: _Grams, k: int, size_K: np.ndarray, words: Sequence[str], top: int
) -> list[Phrase]:
    """The highest z first, equal ones the longest first, without what repeats one before it.

    A phrase that contains a stronger one owes its z to that one (`1. take` to `1.`). One that is
    contained in a stronger one, or shares 2 tokens with it, in nearly the same completions is the
    same stretch of text.
    """
    part = slice(*grams.count_KG.indptr[k : k + 2])
    gram_H, count_H = grams.count_KG.indices[part], grams.count_KG.data[part]
    z_H = _z_scores(count_H, grams.total_G[gram_H], size_K[k], size_K.sum())
    length_H = (grams.tokens_GM[gram_H] >= 0).sum(1)
    stronger: set[tuple[int, ...]] = set()
    taken: list[tuple[tuple[int, ...], int]] = []
    phrases: list[Phrase] = []
    z_H[count_H < MIN_SHARE * size_K[k]] = -np.inf
    for h in _order(z_H, length_H, gram_H):
        if len(phrases) == top:
            break
        tokens = tuple(grams.tokens_GM[gram_H[h], : length_H[h]].tolist())
        count = int(count_H[h])
        owed = not stronger.isdisjoint(_shorter(tokens))
        stronger.add(tokens)
        if owed or any(_same_stretch(tokens, count, *other) for other in taken):
            continue
        taken.append((tokens, count))
        others = grams.total_G[gram_H[h]] - count
        phrases.append(
            Phrase(
                text=_joined([words[token] for token in tokens]),
                z=float(z_H[h]),
                count=count,
                share=float(count / size_K[k]),
                elsewhere=float(others / (size_K.sum() - size_K[k])),
            )
        )
    return phrases


def _order(z: np.ndarray, length: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Places of the phrases that differ from chance, as they are considered."""
    kept = np.flatnonzero(z >= MIN_Z)
    rounded = np.round(z[kept], 9)  # equal counts give equal z, but for the last bit
    longest_first = -length[kept]
    order = np.lexsort((gram[kept], longest_first, -rounded))
    return kept[order]


def _shorter(tokens: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shorter phrases that it contains."""
    for length in range(1, len(tokens)):
        for start in range(len(tokens) - length + 1):
            yield tokens[start : start + length]


def _same_stretch(one: tuple[int, ...], count: int, other: tuple[int, ...], others: int) -> bool:
    """Whether two phrases are pieces of one stretch of text: they overlap and occur about as often.

    Args:
        count, others: how often each occurs.
    """
    if min(count, others) < SAME_COUNT * max(count, others):
        return False
    if one in _shorter(other):
        return True
    overlap = one[-2:] == other[:2] or one[:2] == other[-2:]
    return overlap and min(len(one), len(other)) > 1


def _joined(tokens: Sequence[str]) -> str:
    """The phrase as it is written: no space where its script or its punctuation has none."""
    parts = [tokens[0]]
    for before, token in pairwise(tokens):
        tight = before[-1] in OPENING or token[0] in CLOSING or before.endswith(" ")
        tight = tight or (_unspaced(before) and _unspaced(token))
        parts.append(token if tight else " " + token)
    text = "".join(parts)
    if len(text) <= MAX_SHOWN:
        return text
    return text[: MAX_SHOWN - 1] + "…"


def _unspaced(token: str) -> bool:
    """Whether a token is written without a space before it, as in scripts that have no spaces
    between words.
    """
    return re.match(f"[{UNSPACED}]", token) is not None
