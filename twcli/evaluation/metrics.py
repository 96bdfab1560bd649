"""The figures of `twcli eval` from plain arrays: no model, no files.

Every figure is a function of how often each record counts: once for the figure itself, as often as
it was drawn for each bootstrap resample. Sums are accumulated and divided once. Shapes: N records,
K latents, C strategies, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import entr, xlogy

from twcli.discovery.score import Predictability, ratio, run_score
from twcli.evaluation.verdict import verdict_of
from twcli.training.loss import information
from twcli.training.retention import Retention

ACTIVE_MASS = 0.01  # least mean posterior of a latent in use
CALIBRATION_BINS = 15
COLLAPSED_SHARE = 0.05  # of log K nats: less mutual information than this is a collapse

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

Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Generations:
    """One judged completion for each distinct prompt and latent, G in all.

    Attributes:
        prompts: (G,) int, the prompt's number as the records have it.
        latents: (G,) int.
        strategies: what the judge saw, None for no known strategy.
        correct: whether the answer is right, None where the judge does not know.
        named: whether the judge names strategies at all.
    """

    prompts: np.ndarray
    latents: np.ndarray
    strategies: Sequence[str | None]
    correct: Sequence[bool | None]
    named: bool = True


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
        return _with_intervals(figures, N, bootstrap, source)

    result: dict[str, Any] = {"records": N, "prompts": len(np.unique(prompts)), "latents": K}
    result["posterior"] = of_records(_posterior_figures(posterior, router))
    result["posterior"]["unused"] = np.flatnonzero(posterior.mean(0) < ACTIVE_MASS).tolist()
    least_information = COLLAPSED_SHARE * np.log(K)
    collapsed = result["posterior"]["mutual_information"] < least_information
    result["posterior"]["collapsed"] = bool(collapsed)
    result["router"] = of_records(_router_figures(posterior, router), np.random.default_rng(seed))
    result["alignment"] = _alignment(posterior, prompts, labels, named, scored_P, bootstrap, rng)
    key = "posterior_one_to_one" if named is None else "generation_one_to_one"
    for suffix in ("", "_ci"):
        result[f"strategy_accuracy{suffix}"] = result["alignment"][f"{key}{suffix}"]
    result |= _answer_accuracy(generations, bootstrap, rng)
    result["likelihood"] = of_records(_likelihood_figures(frozen_nll, marginal_nll))
    result["diagnostics"] = of_records(_diagnostic_figures(diagnostics or {}))
    result |= _score(predictability, K, bootstrap, rng)
    result["retention"] = None
    if retained is not None:
        mapping = result["alignment"]["mapping"]
        result["retention"] = _retention(
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


def _with_intervals(
    figures_of: Callable[[np.ndarray], Figures],
    units: int,
    bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Figures at unit weights, each with the 2.5 and 97.5 percentiles over
    multinomial resamples of the units.
    """
    point = figures_of(np.ones(units))
    draws: dict[str, list[float]] = {name: [] for name in point}
    for _ in range(bootstrap):
        chosen = rng.integers(units, size=units)
        weights = np.bincount(chosen, minlength=units).astype(float)
        for name, value in figures_of(weights).items():
            if value is not None:  # a resample may miss all records that a figure is about
                draws[name].append(value)
    result: dict[str, Any] = {}
    for name, value in point.items():
        result[name] = value
        if value is None or not draws[name]:
            result[f"{name}_ci"] = None
        else:
            ends = np.percentile(draws[name], [2.5, 97.5])
            result[f"{name}_ci"] = _with_the_value(value, ends)
    return result


def _with_the_value(value: float, ends: np.ndarray) -> list[float]:
    """The interval, widened to its figure: resamples of a figure that errs to one side, such as an
    entropy or the largest of several, may all lie on that side of it.
    """
    low, high = ends
    return [float(min(value, low)), float(max(value, high))]


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
        known, usage = information(mean_K, entropy)
        return {
            "usage": usage,
            "active": int((mean_K >= ACTIVE_MASS).sum()),
            "mutual_information": known,
            "kl": float(weight_N @ kl_N / total),
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
        return {
            "ece": float(np.abs(sums).sum() / total / K),
            "brier": float(weight_N @ brier_N / total),
            "share_error": float(np.abs(weighted_NK.sum(0)).max() / total),
        }

    return figures


def _likelihood_figures(
    frozen_N: np.ndarray | None, marginal_N: np.ndarray
) -> Callable[[np.ndarray], Figures]:
    """Mean NLL of y in nats an example, and what the run gains over the frozen model."""

    def figures(weight_N: np.ndarray) -> Figures:
        total = weight_N.sum()
        marginal = float(weight_N @ marginal_N / total)
        frozen = None if frozen_N is None else float(weight_N @ frozen_N / total)
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
        if name not in rows:
            return None
        return ratio(weight_N @ filled[name], weight_N @ known[name])

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
            found["amplification"] = float(np.sqrt(weighted / uniform))
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
        return {"score": run_score(predictability, latents, weight_N)}

    return _with_intervals(figures, len(predictability.gain), bootstrap, rng)


def _answer_accuracy(
    generations: Generations | None, bootstrap: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Share of the judged completions whose answer is right; prompts are resampled."""
    if generations is None or all(c is None for c in generations.correct):
        return {"answer_accuracy": None, "answer_accuracy_ci": None}
    prompt_G = np.unique(generations.prompts, return_inverse=True)[1]
    known_G = np.array([c is not None for c in generations.correct], float)
    right_G = np.array([bool(c) for c in generations.correct], float)
    known_P = np.bincount(prompt_G, known_G)
    right_P = np.bincount(prompt_G, right_G)

    def figures(weight_P: np.ndarray) -> Figures:
        right = weight_P @ right_P
        known = weight_P @ known_P
        return {"answer_accuracy": ratio(right, known)}

    return _with_intervals(figures, len(known_P), bootstrap, rng)


# Retention: is each strategy written as well as before?


def _retention(
    retained: Sequence[Retention],
    mapping: dict[str, str | None] | None,
    labels: Sequence[str | None] | None,
    sampled: Generations | None,
    frozen_sampled: Generations | None,
    bootstrap: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Without a judge `strategy` and what follows it are null."""
    entries: list[dict[str, Any]] = []
    names = ("obeyed", "frozen_obeyed", "right", "frozen_right")
    for latent in retained:
        entry = latent.as_dict()
        entry |= {"strategy": None} | {f"{n}{s}": None for n in names for s in ("", "_ci")}
        strategy = (mapping or {}).get(str(latent.latent))
        if strategy is not None and sampled is not None and frozen_sampled is not None:
            entry["strategy"] = strategy
            entry |= _with_intervals(
                _carried_out(latent.latent, strategy, labels or (), sampled, frozen_sampled),
                len(np.union1d(sampled.prompts, frozen_sampled.prompts)),
                bootstrap,
                rng,
            )
        entries.append(entry)
    return entries


def _carried_out(
    latent: int,
    strategy: str,
    labels: Sequence[str | None],
    sampled: Generations,
    frozen: Generations,
) -> Callable[[np.ndarray], Figures]:
    """`obeyed`: share of the completions asked for by the latent that the judge sees as its
    strategy. `frozen_obeyed`: the strategy's share of what the frozen model draws over its share of
    the labelled records, at most 1: what of it the frozen model carries out. `right` and
    `frozen_right`: share of right answers of the completions asked for, and of the frozen model's
    that are of the strategy.
    """
    # a prompt may have no judged completion of one of them
    prompts = np.union1d(sampled.prompts, frozen.prompts)
    prompt_G = np.searchsorted(prompts, sampled.prompts)
    prompt_F = np.searchsorted(prompts, frozen.prompts)
    count = len(prompts)
    known = [label for label in labels if label is not None]
    share = sum(label == strategy for label in known) / len(known) if known else 0.0

    def per_prompt(prompts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return np.bincount(prompts, chosen.astype(float), minlength=count)

    asked_G = sampled.latents == latent
    seen_G = np.array([s == strategy for s in sampled.strategies])
    seen_F = np.array([s == strategy for s in frozen.strategies])
    known_G = np.array([c is not None for c in sampled.correct])
    known_F = np.array([c is not None for c in frozen.correct])
    right_G = np.array([bool(c) for c in sampled.correct])
    right_F = np.array([bool(c) for c in frozen.correct])
    asked_P = per_prompt(prompt_G, asked_G)
    obeyed_P = per_prompt(prompt_G, asked_G & seen_G)
    drawn_P = per_prompt(prompt_F, np.ones(len(prompt_F)))
    of_it_P = per_prompt(prompt_F, seen_F)
    known_P = per_prompt(prompt_G, asked_G & known_G)
    right_P = per_prompt(prompt_G, asked_G & right_G)
    known_frozen_P = per_prompt(prompt_F, seen_F & known_F)
    right_frozen_P = per_prompt(prompt_F, seen_F & right_F)

    def figures(weight_P: np.ndarray) -> Figures:
        drawn = ratio(weight_P @ of_it_P, weight_P @ drawn_P)
        carried = None if drawn is None else ratio(drawn, share)
        return {
            "obeyed": ratio(weight_P @ obeyed_P, weight_P @ asked_P),
            "frozen_obeyed": None if carried is None else min(carried, 1.0),
            "right": ratio(weight_P @ right_P, weight_P @ known_P),
            "frozen_right": ratio(weight_P @ right_frozen_P, weight_P @ known_frozen_P),
        }

    return figures


# Alignment: latents against strategies


def _alignment(
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
    result |= _with_intervals(figures, len(posterior), bootstrap, rng)
    if generations is not None:
        strategy_G = np.array([numbers.get(s, -1) for s in generations.strategies])
        figures, mapping_K = _generation_alignment(
            generations, strategy_G, scored_P, latents, len(names)
        )
        result |= _with_intervals(figures, len(np.unique(generations.prompts)), bootstrap, rng)
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
        mapping[str(k)] = names[c] if c >= 0 else None
        if c < 0 and written_KC[k].any() and share_K[k] >= ACTIVE_MASS:
            spare[str(k)] = names[written_KC[k].argmax()]
    merged: dict[str, int] = {}
    for c, name in enumerate(names):
        if c not in mapping_K:
            merged[name] = int(mass_KC[:, c].argmax())
    return {"mapping": mapping, "spare": spare, "merged": merged}


def _table(
    latent_N: np.ndarray, strategy_N: np.ndarray, latents: int, strategies: int
) -> np.ndarray:
    """(K, C) float counts of latent and strategy together; those without a strategy (-1) are left
    out.
    """
    known = strategy_N >= 0
    cell = latent_N[known] * strategies + strategy_N[known]
    counts = np.bincount(cell, minlength=latents * strategies)
    return counts.reshape(latents, strategies).astype(float)


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

    def table(weight_N: np.ndarray) -> np.ndarray:
        counts = np.bincount(cell_N, weight_N * labelled_N, minlength=latents * strategies)
        return counts.reshape(latents, strategies)

    fitted_KC = table((~scored_N).astype(float))
    mapping_K = one_to_one(fitted_KC)
    scorable_N = labelled_N * scored_N
    hit_N = (mapping_K[latent_N] == label_N) * scorable_N
    merged_N = (fitted_KC.argmax(1)[latent_N] == label_N) * scorable_N

    def figures(weight_N: np.ndarray) -> Figures:
        table_KC = table(weight_N)
        total = table_KC.sum()
        scored = weight_N @ scorable_N
        return {
            "posterior_one_to_one": ratio(weight_N @ hit_N, scored),
            "posterior_many_to_one": ratio(weight_N @ merged_N, scored),
            "nmi": nmi(table_KC),
            "ari": ari(table_KC),
            "majority": ratio(table_KC.sum(0).max(), total),
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
    fitted_KC = _table(generations.latents[~scored_G], strategy_G[~scored_G], latents, strategies)
    mapping_K = one_to_one(fitted_KC)
    prompt_G = np.unique(generations.prompts, return_inverse=True)[1]

    def hits_P_of(strategy_K: np.ndarray) -> np.ndarray:
        hit_G = known_G & (strategy_K[generations.latents] == strategy_G) & scored_G
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
        return {
            "generation_one_to_one": ratio(weight_P @ hits_P, weight_P @ scored_count_P),
            "generation_many_to_one": ratio(weight_P @ merged_P, weight_P @ scored_count_P),
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
    return float((both - entr(joint).sum()) / (both / 2))


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
    return (pairs - expected) / (highest - expected) if highest != expected else 1.0


def _pairs(counts: np.ndarray) -> float:
    """Pairs within cells of these counts (..), which need not be whole."""
    return float((counts * (counts - 1) / 2).sum())
