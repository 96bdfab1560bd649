"""The figures of `twcli eval` from plain arrays: no model, no files.

Every figure is a function of how often each record counts: once for the figure itself, as often as
it was drawn for each bootstrap resample. Sums are accumulated and divided once. Shapes: N records,
K latents, C strategies, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import entr, xlogy

from twcli.discovery.information import information
from twcli.discovery.score import Predictability, ratio, run_score
from twcli.evaluation.alignment import ACTIVE_MASS, alignment
from twcli.evaluation.intervals import Figures, with_intervals
from twcli.evaluation.judged import Generations, answer_accuracy, retention_entries
from twcli.evaluation.verdict import verdict_of
from twcli.training.retention import Retention

CALIBRATION_BINS = 15
COLLAPSED_SHARE = 0.05  # of log K nats: less mutual information than this is a collapse


def summarise(
    *,
    posterior: np.ndarray,
    router: np.ndarray,
    frozen_nll: np.ndarray | None,
    marginal_nll: np.ndarray,
    prompts: np.ndarray,
    labels: Sequence[str | None] | None,
    generations: Generations | None,
    bootstrap: int,
    seed: int,
    diagnostics: dict[str, np.ndarray] | None = None,
    predictability: Predictability | None = None,
    retained: Sequence[Retention] | None = None,
    sampled: Generations | None = None,
    frozen_sampled: Generations | None = None,
) -> dict[str, Any]:
    """All keys of `eval --json`; `<key>_ci` holds a 95 % bootstrap interval [low, high].

    Records are resampled; completions generated for a prompt are resampled together with it. The
    mapping from latents to strategies is one for all x, fitted on the records of one half of the
    prompts and scored on those of the other.

    Args:
        posterior, router: (N, K) probabilities.
        frozen_nll, marginal_nll: (N,) nats per example, summed over the supervised tokens.
        prompts: (N,) int, equal for records of one prompt.
        labels: strategy of each record, None where unknown; None as a whole leaves alignment null.
        bootstrap: resamples behind each interval.
        seed: of the halves and the resamples.
        diagnostics: (N,) figures of each record from `diagnostics.row_figures`,
            NaN where a record has none.
        predictability: of the records that the run is scored by, which need not be all;
            gives the label-free `score`.
        retained: what became of the completions of each latent.
        sampled, frozen_sampled: completions drawn from the run, one for each latent, and as many
            from the frozen model, `latents` of the latter being the numbers of the draws.

    Where K is not the number of strategies: `posterior.unused` lists the latents whose mean
    posterior is below `ACTIVE_MASS`; `alignment.spare` gives for every other latent that the
    one-to-one mapping leaves over the strategy it writes most (its records' without a judge),
    `alignment.merged` for every strategy left over the latent that takes most of its records.

    Returns:
        Sections `posterior`, `router`, `alignment`, `likelihood`, `diagnostics`, the list
        `retention` with an entry for each latent that has records, the `verdict` (kind, sentence,
        advice), and the single figures; null where there is nothing to tell.
    """
    rng = np.random.default_rng([seed, 0])
    N, K = posterior.shape
    scored_P = _second_half(int(prompts.max()) + 1, rng)
    named = generations if generations is not None and generations.named else None

    def of_records(
        figures: Callable[[np.ndarray], Figures], source: np.random.Generator = rng
    ) -> dict[str, Any]:
        """The figures of all records, each with its interval over records."""
        return with_intervals(figures, N, bootstrap, source)

    result: dict[str, Any] = {"records": N, "prompts": len(np.unique(prompts)), "latents": K}
    result["posterior"] = of_records(_posterior_figures(posterior, router))
    result["posterior"]["unused"] = np.flatnonzero(posterior.mean(0) < ACTIVE_MASS).tolist()
    least_information = COLLAPSED_SHARE * np.log(K)
    collapsed = result["posterior"]["mutual_information"] < least_information
    result["posterior"]["collapsed"] = bool(collapsed)
    result["router"] = of_records(_router_figures(posterior, router), np.random.default_rng(seed))
    result["alignment"] = alignment(posterior, prompts, labels, named, scored_P, bootstrap, rng)
    key = "posterior_one_to_one" if named is None else "generation_one_to_one"
    for suffix in ("", "_ci"):
        result[f"strategy_accuracy{suffix}"] = result["alignment"][f"{key}{suffix}"]
    result |= answer_accuracy(generations, bootstrap, rng)
    result["likelihood"] = of_records(_likelihood_figures(frozen_nll, marginal_nll))
    result["diagnostics"] = of_records(_diagnostic_figures(diagnostics or {}))
    result |= _score(predictability, K, bootstrap, rng)
    result["retention"] = None
    if retained is not None:
        mapping = result["alignment"]["mapping"]
        result["retention"] = retention_entries(
            retained, mapping, labels, sampled, frozen_sampled, bootstrap, rng
        )
    result["verdict"] = verdict_of(result).as_dict()
    return result


def _second_half(prompts: int, rng: np.random.Generator) -> np.ndarray:
    """(P,) bool: a random half of the prompts; none where there is one prompt, so
    that its scores are null.
    """
    second = np.zeros(prompts, bool)
    second[rng.permutation(prompts)[: prompts // 2]] = True
    return second


def _posterior_figures(
    posterior_NK: np.ndarray, router_NK: np.ndarray
) -> Callable[[np.ndarray], Figures]:
    """How much z says of y. All in nats but `usage`, the exponential of the entropy of the mean
    posterior, and `active`, the number of latents whose mean posterior is `ACTIVE_MASS` or more.
    """
    entropy_N = entr(posterior_NK).sum(1)
    positive_router_NK = np.maximum(router_NK, 1e-300)
    kl_NK = xlogy(posterior_NK, posterior_NK) - xlogy(posterior_NK, positive_router_NK)
    kl_N = kl_NK.sum(1)

    def figures(weight_N: np.ndarray) -> Figures:
        total = weight_N.sum()
        mean_K = weight_N @ posterior_NK / total
        entropy = weight_N @ entropy_N / total
        kl = weight_N @ kl_N / total
        known, usage = information(mean_K, entropy)
        active_K = mean_K >= ACTIVE_MASS
        return {
            "usage": usage,
            "active": int(active_K.sum()),
            "mutual_information": known,
            "kl": float(kl),
            "entropy": float(entropy),
        }

    return figures


def _router_figures(
    posterior_NK: np.ndarray, router_NK: np.ndarray
) -> Callable[[np.ndarray], Figures]:
    """Is p(z|x) calibrated? The posterior of the same records is what it should predict.

    `ece`: class-wise expected calibration error (Kull et al. 2019): mean over latents of the mean
    difference, in bins of equal width, between the probability of the latent and its posterior
    mass. `brier`: mean squared difference, summed over latents. `share_error`: largest difference
    over latents between its share of the router and of the posterior.
    """
    N, K = router_NK.shape
    bin_NK = np.minimum((router_NK * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    cell_NK = bin_NK + CALIBRATION_BINS * np.arange(K)
    # differences add up within a cell: their absolute sum over cells is the error
    cells, cell_NK = np.unique(cell_NK, return_inverse=True)
    cell_NK = cell_NK.reshape(N, K)
    difference_NK = router_NK - posterior_NK
    brier_N = (difference_NK**2).sum(1)

    def figures(weight_N: np.ndarray) -> Figures:
        total = weight_N.sum()
        weighted_NK = weight_N[:, None] * difference_NK
        sums = np.bincount(cell_NK.ravel(), weighted_NK.ravel(), minlength=len(cells))
        calibration = np.abs(sums).sum() / total / K
        brier = weight_N @ brier_N / total
        largest = np.abs(weighted_NK.sum(0)).max()
        return {
            "ece": float(calibration),
            "brier": float(brier),
            "share_error": float(largest / total),
        }

    return figures


def _likelihood_figures(
    frozen_N: np.ndarray | None, marginal_N: np.ndarray
) -> Callable[[np.ndarray], Figures]:
    """Mean NLL of y in nats an example, and what the run gains over the frozen model."""

    def figures(weight_N: np.ndarray) -> Figures:
        total = weight_N.sum()
        marginal = float(weight_N @ marginal_N / total)
        if frozen_N is None:
            frozen = None
        else:
            frozen = float(weight_N @ frozen_N / total)
        return {
            "frozen_nll": frozen,
            "marginal_nll": marginal,
            "gain": None if frozen is None else frozen - marginal,
        }

    return figures


def _diagnostic_figures(rows: dict[str, np.ndarray]) -> Callable[[np.ndarray], Figures]:
    """As `diagnostics.summarise_rows`, for records that count several times or not at all.

    Args:
        rows: (N,) of each figure, NaN where a record has none.
    """
    known = {name: np.isfinite(values) for name, values in rows.items()}
    filled = {name: np.where(known[name], values, 0.0) for name, values in rows.items()}

    def mean(weight_N: np.ndarray, name: str) -> float | None:
        """The mean of a figure over the records that have it."""
        if name not in rows:
            return None
        total = weight_N @ filled[name]
        count = weight_N @ known[name]
        return ratio(total, count)

    def figures(weight_N: np.ndarray) -> Figures:
        names = (
            "informative",
            "informative_tokens",
            "uniform_rows",
            "z_sensitivity",
            "z_sensitivity_weighted",
            "z_sensitivity_sum",
        )
        found: Figures = {name: mean(weight_N, name) for name in names}
        uniform = mean(weight_N, "gradient_uniform")
        weighted = mean(weight_N, "gradient_weighted")
        found["amplification"] = None
        if weighted is not None and uniform:
            squared = weighted / uniform
            found["amplification"] = float(np.sqrt(squared))
        informative = found["informative"]
        found["expected_amplification"] = 1 / informative if informative else None
        return found

    return figures


def _score(
    predictability: Predictability | None, latents: int, bootstrap: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The label-free score of the run; null where there is nothing to score it by."""
    if predictability is None:
        return {"score": None, "score_ci": None}

    def figures(weight_N: np.ndarray) -> Figures:
        """The score, between 0 and 1, of resampled records."""
        return {"score": run_score(predictability, latents, weight_N)}

    return with_intervals(figures, len(predictability.gain), bootstrap, rng)
