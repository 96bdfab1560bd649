"""Do latents mean strategies? The run's latents against labels, and against what a judge sees in
its completions. Shapes: N records, G completions, P prompts, K latents, C strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import entr

from twcli.discovery.information import mutual_information
from twcli.discovery.matching import contingency
from twcli.discovery.score import ratio
from twcli.evaluation.intervals import Figures, with_intervals
from twcli.evaluation.judged import Generations

ACTIVE_MASS = 0.01  # least mean posterior of a latent in use
ALIGNMENT_KEYS = (
    "posterior_one_to_one",
    "generation_one_to_one",
    "posterior_many_to_one",
    "generation_many_to_one",
    "nmi",
    "ari",
    "coverage_mean",
    "full_coverage_rate",
    "majority",
)


def alignment(
    posterior: np.ndarray,
    prompts: np.ndarray,
    labels: Sequence[str | None] | None,
    generations: Generations | None,
    scored_P: np.ndarray,
    bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Whether latents mean strategies; all null where no strategy is known.

    Args:
        generations: completions whose strategy a judge named.
        scored_P: (P,) bool, prompts that the mapping is scored on; it is fitted on the others.
    """
    labels = labels or ()
    names = sorted({label for label in labels if label is not None})
    result: dict[str, Any] = {}
    for key in ALIGNMENT_KEYS:
        result[key] = result[f"{key}_ci"] = None
    result["mapping"] = result["spare"] = result["merged"] = None
    if not names:
        return result
    latents = posterior.shape[1]
    numbers: dict[str | None, int] = {name: c for c, name in enumerate(names)}
    label_N = np.array([numbers.get(label, -1) for label in labels])
    figures, mapping_K = _record_alignment(
        posterior.argmax(1), label_N, scored_P[prompts], latents, len(names)
    )
    masses = [posterior[label_N == c].sum(0) for c in range(len(names))]
    written_KC = mass_KC = np.stack(masses, axis=1)
    result |= with_intervals(figures, len(posterior), bootstrap, rng)
    if generations is not None:
        strategy_G = np.array([numbers.get(s, -1) for s in generations.strategies])
        figures, mapping_K = _generation_alignment(
            generations, strategy_G, scored_P, latents, len(names)
        )
        result |= with_intervals(figures, len(np.unique(generations.prompts)), bootstrap, rng)
        written_KC = _table(generations.latents, strategy_G, latents, len(names))
    return result | _mapped(names, mapping_K, written_KC, mass_KC, posterior.mean(0))


def _mapped(
    names: Sequence[str],
    mapping_K: np.ndarray,
    written_KC: np.ndarray,
    mass_KC: np.ndarray,
    share_K: np.ndarray,
) -> dict[str, Any]:
    """The one-to-one mapping by name, and what it leaves over: latents that are used (`spare`), and
    strategies (`merged`).

    Args:
        names: C strategies.
        mapping_K: strategy of each latent, -1 for none.
        written_KC: how much of each strategy a latent writes.
        mass_KC: posterior mass of each strategy's records.
        share_K: mean posterior.
    """
    mapping: dict[str, str | None] = {}
    spare: dict[str, str] = {}
    for k, c in enumerate(mapping_K.tolist()):
        if c >= 0:
            mapping[str(k)] = names[c]
            continue
        mapping[str(k)] = None
        written_C = written_KC[k]
        if written_C.any() and share_K[k] >= ACTIVE_MASS:
            most = written_C.argmax()
            spare[str(k)] = names[most]
    merged: dict[str, int] = {}
    for c, name in enumerate(names):
        if c not in mapping_K:
            mass_K = mass_KC[:, c]
            merged[name] = int(mass_K.argmax())
    return {"mapping": mapping, "spare": spare, "merged": merged}


def _table(
    latent_N: np.ndarray, strategy_N: np.ndarray, latents: int, strategies: int
) -> np.ndarray:
    """(K, C) float counts of latent and strategy together; those without a strategy (-1) are left
    out.
    """
    known = strategy_N >= 0
    return contingency(latent_N[known], strategy_N[known], latents, strategies).astype(float)


def _record_alignment(
    latent_N: np.ndarray, label_N: np.ndarray, scored_N: np.ndarray, latents: int, strategies: int
) -> tuple[Callable[[np.ndarray], Figures], np.ndarray]:
    """Agreement of the records' latents with their labels, and the mapping (K,) that is scored.

    Args:
        latent_N: most probable latent of each record.
        label_N: its strategy, -1 where it has no label.
        scored_N: bool; the mapping is fitted on the others.
    """
    labelled_N = (label_N >= 0).astype(float)
    cell_N = latent_N * strategies + np.maximum(label_N, 0)
    cells = latents * strategies

    def table(weight_N: np.ndarray) -> np.ndarray:
        """(K, C) summed weights of the labelled records of each latent and strategy."""
        counts = np.bincount(cell_N, weight_N * labelled_N, minlength=cells)
        return counts.reshape(latents, strategies)

    fitted_N = (~scored_N).astype(float)
    fitted_KC = table(fitted_N)
    mapping_K = one_to_one(fitted_KC)
    majority_K = fitted_KC.argmax(1)
    scorable_N = labelled_N * scored_N
    hit_N = (mapping_K[latent_N] == label_N) * scorable_N
    merged_N = (majority_K[latent_N] == label_N) * scorable_N

    def figures(weight_N: np.ndarray) -> Figures:
        table_KC = table(weight_N)
        count_C = table_KC.sum(0)
        scored = weight_N @ scorable_N
        hits = weight_N @ hit_N
        merged = weight_N @ merged_N
        return {
            "posterior_one_to_one": ratio(hits, scored),
            "posterior_many_to_one": ratio(merged, scored),
            "nmi": nmi(table_KC),
            "ari": ari(table_KC),
            "majority": ratio(count_C.max(), table_KC.sum()),
        }

    return figures, mapping_K


def _generation_alignment(
    generations: Generations,
    strategy_G: np.ndarray,
    scored_P: np.ndarray,
    latents: int,
    strategies: int,
) -> tuple[Callable[[np.ndarray], Figures], np.ndarray]:
    """Agreement of what was asked for with what the judge saw, and the mapping (K,) that is scored.

    Args:
        strategy_G: that the judge saw in each completion, -1 for none.
        scored_P: bool; the mapping is fitted on completions of the other prompts.
    """
    known_G = strategy_G >= 0
    scored_G = scored_P[generations.prompts]
    asked_G = generations.latents
    fitted_KC = _table(asked_G[~scored_G], strategy_G[~scored_G], latents, strategies)
    mapping_K = one_to_one(fitted_KC)
    _, prompt_G = np.unique(generations.prompts, return_inverse=True)

    def hits_P_of(strategy_K: np.ndarray) -> np.ndarray:
        """(P,) scored completions that have the strategy of the latent that was asked for."""
        right_G = strategy_K[asked_G] == strategy_G
        hit_G = known_G & right_G & scored_G
        return np.bincount(prompt_G, hit_G)

    hits_P = hits_P_of(mapping_K)
    merged_P = hits_P_of(fitted_KC.argmax(1))
    scored_count_P = np.bincount(prompt_G, scored_G)
    found_PC = np.zeros((len(hits_P), strategies), bool)
    found_PC[prompt_G[known_G], strategy_G[known_G]] = True
    coverage_P = found_PC.mean(1)
    full_P = found_PC.all(1)

    def figures(weight_P: np.ndarray) -> Figures:
        total = weight_P.sum()
        scored = weight_P @ scored_count_P
        return {
            "generation_one_to_one": ratio(weight_P @ hits_P, scored),
            "generation_many_to_one": ratio(weight_P @ merged_P, scored),
            "coverage_mean": float(weight_P @ coverage_P / total),
            "full_coverage_rate": float(weight_P @ full_P / total),
        }

    return figures, mapping_K


def one_to_one(table_KC: np.ndarray) -> np.ndarray:
    """(K,) strategy of each latent, -1 for latents left over: the one-to-one mapping
    that counts most (Hungarian).
    """
    mapping = np.full(len(table_KC), -1)
    rows, columns = linear_sum_assignment(-table_KC)
    mapping[rows] = columns
    return mapping


def nmi(table_KC: np.ndarray) -> float | None:
    """Mutual information over the mean of both entropies, from counts, which need not
    be whole; 1 for one cell.
    """
    total = table_KC.sum()
    if not total:
        return None
    joint = table_KC / total
    entropy_of_rows = entr(joint.sum(1)).sum()
    entropy_of_columns = entr(joint.sum(0)).sum()
    both = entropy_of_rows + entropy_of_columns
    if both <= 0:
        return 1.0
    mean_entropy = both / 2
    return float(mutual_information(table_KC) / mean_entropy)


def ari(table_KC: np.ndarray) -> float | None:
    """Adjusted Rand index (Hubert and Arabie 1985) from counts; 1 where both sides
    put all, or none, together.
    """
    total = table_KC.sum()
    if total < 2:
        return None
    pairs = _pairs(table_KC)
    rows = _pairs(table_KC.sum(1))
    columns = _pairs(table_KC.sum(0))
    expected = rows * columns / (total * (total - 1) / 2)
    highest = (rows + columns) / 2
    if highest != expected:
        return (pairs - expected) / (highest - expected)
    return 1.0


def _pairs(counts: np.ndarray) -> float:
    """Pairs within cells of these counts (..), n (n - 1) / 2 each, summed; weighted counts need not
    be whole.
    """
    return float((counts * (counts - 1) / 2).sum())
