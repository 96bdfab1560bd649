"""What starts of a clustering get wrong most often: a pair of clusters whose names are
exchanged for some prompts.

Shapes: N rows, P prompts, D directions.
"""

from __future__ import annotations

import math
import warnings
from itertools import combinations

import numpy as np
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

from twcli.discovery.predictability import REASSIGNMENTS, CrossValidation, ridge_map

ALIKE = 0.95  # share of rows on which two clusterings agree, from which they are one
# ways of naming one pair of clusters again: judged by one assignment, and reassigned
EXCHANGES, REASSIGNED_EXCHANGES = 12, 3
# by which such a way may be less predictable than the present one: other clusters count as well
SLACK = 0.04
MARGIN = 1e-6
PRINCIPAL = 16  # directions tried
SPANS = (6, 8, 10, 12, 16, 20)  # of the leading directions, in which independent ones are sought
FLAT = 1e-5  # of the largest spread: along such a direction there is rounding only


def search(
    judge: CrossValidation, clusters: np.ndarray, score: float
) -> list[tuple[np.ndarray, float]]:
    """(clusters (N,), score) of all that were met while two clusters' names were
    exchanged, prompt by prompt.

    The search continues from each exchange that raises the score, until none does.
    """
    met = []
    pairs = list(combinations(range(judge.latents), 2))
    waiting = list(pairs)
    while waiting:
        pair = waiting.pop(0)
        screened = []
        for view in judge.views:
            for exchanged in _exchanges(judge, view, clusters, *pair):
                screened.append(judge.assign(exchanged))
        screened.sort(key=lambda result: -result[1])
        for assigned, _ in screened[:REASSIGNED_EXCHANGES]:
            reassigned, better = judge.reassign(assigned)
            met.append((reassigned, better))
            if better > score + MARGIN:
                clusters, score = reassigned, better
                waiting = [other for other in pairs if other != pair]
                break
    return met


def _exchanges(
    judge: CrossValidation, points: np.ndarray, clusters: np.ndarray, one: int, other: int
) -> list[np.ndarray]:
    """Clusters with the two named again in all prompts that have both, in the ways that are most
    predictable from a view's points.

    Where most rows of the two are in prompts without the other, those also take the names that
    the same direction gives them.
    """
    row_P = np.full((2, len(judge.second_P)), -1)
    for side, name in enumerate((one, other)):
        rows = np.flatnonzero(clusters == name)
        row_P[side, judge.prompt_N[rows]] = rows
    both = np.flatnonzero((row_P >= 0).all(0))
    second = judge.second_P[both]
    if second.all() or not second.any():
        return []
    rows_one, rows_other = row_P[:, both]
    apart = points[rows_one] - points[rows_other]
    # two strategies that begin alike
    if np.abs(apart).max(initial=0) <= FLAT * np.abs(points).max(initial=0):
        return []
    signs, values = _reassigned(_two_humps(apart), apart, second)
    chosen = _most_predictable(signs, values)
    exchanged = []
    for sign in chosen:
        new = clusters.copy()
        new[rows_one[sign < 0]], new[rows_other[sign < 0]] = other, one
        exchanged.append(new)
    alone = np.isin(clusters, (one, other))
    alone[[rows_one, rows_other]] = False
    if alone.sum() > 2 * len(apart):
        beside, ridge = points[alone] - points[alone].mean(0), ridge_map(apart)
        for sign, new in zip(chosen, exchanged.copy(), strict=True):
            exchanged.append(new.copy())
            exchanged[-1][alone] = np.where(beside @ (ridge @ sign) >= 0, one, other)
    return exchanged


def _two_humps(apart: np.ndarray) -> np.ndarray:
    """(P, C) signs that name two completions of each prompt in many ways, from the differences
    between them (P, D); the first is the present one.

    Along the direction that separates the two names the differences have two humps. Such
    directions are what independent component analysis finds (Hyvarinen and Oja 2000);
    principal ones are tried as well.
    """
    _, spreads, directions = np.linalg.svd(apart, full_matrices=False)
    directions = directions[spreads > FLAT * spreads[0]]
    spreads = spreads[: len(directions), None]
    tried = [np.ones((len(apart), 1)), apart @ directions[:PRINCIPAL].T]
    for span in sorted({min(span, len(directions)) for span in SPANS}):
        whitened = apart @ (directions[:span] / spreads[:span]).T * math.sqrt(len(apart))
        tried.append(whitened @ _independent_directions(whitened).T)
    return np.where(np.concatenate(tried, axis=1) >= 0, 1.0, -1.0)


def _reassigned(
    signs: np.ndarray, apart: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(signs, the values that they are the signs of), (P, C) both, after regressions on each half
    of the prompts predicted the other.
    """
    ridges = [(half, ridge_map(apart[~half])) for half in (second, ~second)]
    values = np.empty_like(signs)
    for _ in range(REASSIGNMENTS):
        for half, ridge in ridges:
            values[half] = apart[half] @ (ridge @ signs[~half])
        previous, signs = signs, np.where(values >= 0, 1.0, -1.0)
        if np.array_equal(previous, signs):
            break
    return signs, values


def _most_predictable(signs: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Up to `EXCHANGES` columns (P,), most predictable first, none of them nearly another or the
    first, which is the present one.
    """
    fits = np.abs(values).mean(0)
    known = [signs[:, 0]]
    for column in np.argsort(-fits):
        sign = signs[:, column]
        predictable = fits[column] > fits[0] - SLACK
        if predictable and all(abs(sign @ k) < (2 * ALIKE - 1) * len(k) for k in known):
            known.append(sign)
    return known[1 : 1 + EXCHANGES]


def _independent_directions(whitened: np.ndarray) -> np.ndarray:
    """(D, D) orthonormal rows along which the points are least normal; the axes where none can
    be distinguished from a normal one.
    """
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # signs are all that is taken from them
        try:
            ica = FastICA(whiten=False, fun=_cube, max_iter=50, tol=1e-3, random_state=0)
            return ica.fit(whitened.astype(np.float64)).components_
        except ValueError:
            # its step cancels where the points are as normal as can be, and what
            # is left of it is rounding
            return np.eye(whitened.shape[1])


def _cube(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's "cube" (.., N) and the mean of its slope (..), without powers, which take
    numpy ten times as long as products.
    """
    squared = x * x
    slope = 3 * squared.mean(-1)
    return x * squared, slope
