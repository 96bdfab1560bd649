"""`sampling` of `twcli eval --samples N`: the frozen model, and the run in three ways to divide the
same number of samples, on the same prompts.

    frozen         the frozen model drawn N times, at the best of a few temperatures
    even           N divided evenly over the latents (round robin)
    proportional   N divided over the latents in proportion to p(z|x), the likeliest first
    router         N latents drawn from p(z|x), one completion each

What was drawn becomes figures here; `comparison` draws, and adds what takes a model.

Shapes: P prompts, K latents, N samples a prompt, D draws, A arms, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from twcli.evaluation import sampling
from twcli.evaluation.judges import Judge, Verdict
from twcli.evaluation.samples import drawn_latents
from twcli.evaluation.sampling import Draws

FROZEN, EVEN, PROPORTIONAL, ROUTER = "frozen", "even", "proportional", "router"
COMPARED = (EVEN, PROPORTIONAL, ROUTER)  # with the frozen model
VERDICTS = "judging the samples"

Tables = dict[tuple[str, str], np.ndarray]  # by key of the JSON and arm


@dataclass(frozen=True)
class Arm:
    """The completions of one arm.

    Attributes:
        texts: a list for each prompt, of latent 0 first where strata are latents.
        strata: of each completion, as `sampling.Draws`; `order` likewise.
        samples: a list for each prompt of the N that the arm draws, in its order.
        latents: of each completion, -1 for the frozen model.
    """

    texts: list[list[str]]
    strata: list[list[int]]
    samples: list[list[str]]
    latents: list[list[int]]
    order: np.ndarray | None = None

    def pairs(self, xs: Sequence[str]) -> list[tuple[str, str]]:
        """(x, y) of every completion of the prompts."""
        found = []
        for x, ys in zip(xs, self.texts, strict=True):
            found += [(x, y) for y in ys]
        return found


def arms_of(lines: Sequence[dict[str, Any]], samples: int, seed: int) -> dict[str, Arm]:
    """The arms, those of the frozen model by temperature as `frozen 0.7`, from what was drawn."""
    arms: dict[str, Arm] = {}
    for temperature in lines[0]["frozen"]:
        texts = [line["frozen"][temperature] for line in lines]
        nothing = [[0] * samples for _ in lines]
        unknown = [[-1] * samples for _ in lines]
        arms[f"{FROZEN} {temperature}"] = Arm(texts, nothing, texts, unknown)
    router = np.asarray([line["router"] for line in lines])
    arms[EVEN] = _even_arm(lines, samples, router.shape[1])
    order_PN = sampling.proportional_order(router, samples)
    order = order_PN.tolist()
    ordered = _in_order(lines, order_PN)
    arms[PROPORTIONAL] = Arm(ordered, order, ordered, order, order_PN)
    drawn_PN = np.stack([drawn_latents(seed, row, p, samples) for row, p in enumerate(router)])
    ordered = _in_order(lines, drawn_PN)
    exchangeable = [[0] * samples for _ in lines]
    arms[ROUTER] = Arm(ordered, exchangeable, ordered, drawn_PN.tolist())
    return arms


def _even_arm(lines: Sequence[dict[str, Any]], samples: int, K: int) -> Arm:
    """The arm in which all latents get as many samples, or some of them one more than others: all
    choices of these count.
    """
    each = math.ceil(samples / K)
    texts = []
    for line in lines:
        of_latents = [ys[:each] for ys in line["latents"]]
        texts.append(list(chain(*of_latents)))
    of_prompt = np.repeat(np.arange(K), each).tolist()
    latents = [of_prompt for _ in lines]
    turns_N = np.arange(samples) % K
    even_PN = np.tile(turns_N, (len(lines), 1))
    return Arm(texts, latents, _in_order(lines, even_PN), latents)


def _in_order(lines: Sequence[dict[str, Any]], latent_PN: np.ndarray) -> list[list[str]]:
    """For each prompt N completions under these latents: the n-th time that a latent comes, the
    n-th of its completions, in every arm.
    """
    ordered = []
    for line, latent_N in zip(lines, latent_PN.tolist(), strict=True):
        left = [iter(texts) for texts in line["latents"]]
        ordered.append([next(left[k]) for k in latent_N])
    return ordered


@dataclass(frozen=True)
class Judged:
    """The draws of all arms, on the same prompts.

    Attributes:
        every: by arm.
        known: those with a verdict, by arm.
        strategies: that the judge named, in the order of their numbers.
        prompts: P.
    """

    every: dict[str, Draws]
    known: dict[str, Draws]
    strategies: list[str]
    prompts: int


def judge_arms(
    arms: dict[str, Arm],
    xs: Sequence[str],
    judge: Judge | None,
    progress: Callable[[str, int], Any],
) -> Judged:
    """What the judge says of the arms' completions."""
    pairs = {name: arm.pairs(xs) for name, arm in arms.items()}
    whole = list(chain(*pairs.values()))
    verdicts: list[Verdict | None] = [None] * len(whole)
    if judge:
        with progress(VERDICTS, len(set(whole))) as advance:
            verdicts = judge.verdicts(whole, advance)
    names = sorted({verdict[0] for verdict in verdicts if verdict and verdict[0] is not None})
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    texts = {pair: number for number, pair in enumerate(dict.fromkeys(whole))}
    every = {}
    known = {}
    start = 0
    for name, arm in arms.items():
        those = verdicts[start : start + len(pairs[name])]
        start += len(those)
        seen = [verdict or (None, None) for verdict in those]
        draws = Draws(
            prompts=np.repeat(np.arange(len(xs)), [len(ys) for ys in arm.texts]),
            strata=np.asarray(list(chain(*arm.strata)), np.int64),
            correct=np.array([np.nan if right is None else right for _, right in seen], float),
            strategies=np.array([numbers.get(strategy, -1) for strategy, _ in seen], np.int64),
            texts=np.array([texts[pair] for pair in pairs[name]], np.int64),
            order=arm.order,
        )
        every[name] = draws
        known[name] = draws.those(np.array([verdict is not None for verdict in those], bool))
    return Judged(every, known, names, len(xs))


def powers(samples: int) -> np.ndarray:
    """(k,) int: 1, 2, 4 .. and N."""
    return np.unique([min(2**n, samples) for n in range(samples.bit_length() + 1)])


def figures_of(
    judged: Judged,
    *,
    latents: int,
    samples: int,
    temperature: float,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """What `sampling` holds of the arms, from their draws; null where a judge would be needed.

    Prompts with too few verdicts in one arm are left out of all.
    """
    ks = powers(samples)
    values = _values(judged, latents, samples)
    best = _best_frozen(values, ks, temperature)
    arms = ({FROZEN: best} if best else {}) | {name: name for name in COMPARED}
    columns = {(key, name): per_arm[arms[name]] for key, per_arm in values.items() for name in arms}
    means = {place: sampling.mean(table) for place, table in columns.items()}
    resampled = _resampled(columns, bootstrap, seed)
    differing = [name for name in arms if best and name != FROZEN]
    result: dict[str, Any] = {
        "k": ks.tolist(),
        "arms": {name: _at_powers(means, resampled, name, ks) for name in arms},
        "difference": {
            name: _at_powers(_less_frozen(means), _less_frozen(resampled), name, ks)
            for name in differing
        },
        "samples_saved": {},
    }
    passed = values.get("pass_at_k")
    if best:
        result["arms"][FROZEN]["temperature"] = float(best.split()[1])
        result["temperatures"] = {}
        for name in judged.every:
            if name.startswith(f"{FROZEN} "):
                if passed is None:
                    curve = None
                else:
                    curve = sampling.mean(passed[name])[ks - 1]
                result["temperatures"][name.split()[1]] = _numbers(curve)
    result["judged_prompts"] = None
    if passed is not None:
        result["judged_prompts"] = int(np.isfinite(passed[EVEN]).all(1).sum())
        result["samples_saved"] = {
            name: _saved(
                means["pass_at_k", FROZEN],
                means["pass_at_k", name],
                resampled["pass_at_k", FROZEN],
                resampled["pass_at_k", name],
            )
            for name in differing
        }
    return result


def _values(judged: Judged, latents: int, samples: int) -> dict[str, dict[str, np.ndarray]]:
    """What can be said, by key and arm: (P, N) of pass@k, for every k, and (P, powers) of the
    others; NaN for prompts with too few verdicts in one arm.
    """
    ks = powers(samples)
    all_ks = np.arange(1, samples + 1)
    P = judged.prompts
    strata = {name: latents if name in (EVEN, PROPORTIONAL) else 1 for name in judged.every}
    values: dict[str, dict[str, np.ndarray]] = {}
    if any(np.isfinite(draws.correct).any() for draws in judged.known.values()):
        values["pass_at_k"] = {
            name: sampling.success(draws, P, strata[name], all_ks)
            for name, draws in judged.known.items()
        }
    if judged.strategies:
        values["strategies_at_k"] = {
            name: sampling.kinds(draws, draws.strategies, P, strata[name], ks)
            for name, draws in judged.known.items()
        }
    values["distinct_at_k"] = {
        name: sampling.kinds(draws, draws.texts, P, strata[name], ks) / ks
        for name, draws in judged.every.items()
    }
    for per_arm in values.values():
        gaps = np.isnan(np.stack(list(per_arm.values()))).any(0)
        for table in per_arm.values():
            table[gaps] = np.nan
    return values


def _resampled(columns: Tables, bootstrap: int, seed: int) -> Tables:
    """(bootstrap, k) means of each table (P, k), all of the same prompts in each resample."""
    joined = np.concatenate(list(columns.values()), axis=1)
    drawn = sampling.resample(joined, bootstrap, seed)
    widths = [table.shape[1] for table in columns.values()]
    pieces = np.split(drawn, np.cumsum(widths)[:-1], axis=1)
    return dict(zip(columns, pieces, strict=True))


def _less_frozen(tables: Tables) -> Tables:
    """By key and arm, less what the frozen model has of that key."""
    differences = {}
    for (key, name), table in tables.items():
        frozen = tables[key, FROZEN]
        differences[key, name] = table - frozen
    return differences


def _at_powers(means: Tables, resampled: Tables, name: str, ks: np.ndarray) -> dict[str, Any]:
    """What the JSON has of one arm: each key at k = 1, 2, 4 .. with its interval, null where it is
    not known.
    """
    result: dict[str, Any] = {}
    for key in ("pass_at_k", "strategies_at_k", "distinct_at_k"):
        mean = means.get((key, name))
        drawn = resampled.get((key, name))
        if key == "pass_at_k":
            at = ks - 1
        else:
            at = np.arange(len(ks))
        result[key] = _numbers(None if mean is None else mean[at])
        if drawn is None:
            result[f"{key}_ci"] = None
        else:
            result[f"{key}_ci"] = [sampling.interval(drawn[:, column]) for column in at]
    return result


def _best_frozen(
    values: dict[str, dict[str, np.ndarray]], ks: np.ndarray, temperature: float
) -> str | None:
    """The arm of the frozen model with the largest pass@N, which samples saved are counted against,
    or with most strategies covered by N samples where no answer is judged; of equal ones that with
    the largest mean over k = 1, 2, 4 .. N. Else the one at the run's temperature.
    """
    frozen = [name for name in values["distinct_at_k"] if name.startswith(f"{FROZEN} ")]
    if not frozen:
        return None
    for key, at in (("pass_at_k", ks - 1), ("strategies_at_k", np.arange(len(ks)))):
        if key in values:
            score = {}
            for name in frozen:
                curve = np.nan_to_num(sampling.mean(values[key][name])[at])
                score[name] = (float(curve[-1]), float(curve.mean()))
            return max(frozen, key=lambda name: score[name])
    return min(frozen, key=lambda name: abs(float(name.split()[1]) - temperature))


def _numbers(values: np.ndarray | None) -> list[float | None] | None:
    """As JSON has them: null for what is not finite."""
    if values is None:
        return None
    return [float(value) if np.isfinite(value) else None for value in values]


def _saved(
    reference: np.ndarray, curve: np.ndarray, reference_B: np.ndarray, curve_B: np.ndarray
) -> dict[str, Any]:
    """How many samples the frozen model and an arm need for the highest pass@k that both reach.

    Args:
        reference, curve: (k,) pass@k of the frozen model and of an arm.
        reference_B, curve_B: (B, k) the same of resampled prompts.
    """
    finite = np.isfinite(reference).all() and np.isfinite(curve).all()
    if not finite:
        return dict.fromkeys(("pass", "frozen_samples", "samples", "ratio", "ratio_ci"))
    target, frozen_samples, samples = sampling.samples_saved(reference, curve)
    _, frozen_B, samples_B = sampling.samples_saved(reference_B, curve_B)
    return {
        "pass": float(target),
        "frozen_samples": float(frozen_samples),
        "samples": float(samples),
        "ratio": float(frozen_samples / samples),
        "ratio_ci": sampling.interval(frozen_B / samples_B),
    }


def prediction(
    frozen: Draws,
    names: Sequence[str],
    *,
    reference: Draws,
    prompts: int,
    latents: int,
    samples: int,
    seed: int,
) -> dict[str, Any] | None:
    """What the strategies' frequencies and accuracies in the frozen model's samples predict for a
    run in which each has a latent; None where that is not known.

    Args:
        frozen: samples at the run's temperature, at which a latent makes as many mistakes.
        reference: those at the frozen model's best temperature, with which the run is compared.
    """
    mixture = sampling.fit_mixture(frozen, prompts, seed)
    if mixture is None:
        return None
    ks = np.arange(1, samples + 1)
    known = np.isfinite(frozen.correct)
    strategies = {}
    for number, name in enumerate(names):
        those = (frozen.strategies == number) & known
        strategies[name] = {
            "frequency": float(those.sum() / known.sum()),
            "accuracy": float(frozen.correct[those].mean()) if those.any() else None,
        }
    drawn = sampling.mean(sampling.success(reference, prompts, 1, ks))
    result: dict[str, Any] = {
        "classes": len(mixture.weights),
        "strategies": strategies,
        "pass_at_k": {FROZEN: drawn[powers(samples) - 1].tolist()},
        "ratio": {},
    }
    for name, by_frequency in ((EVEN, False), (PROPORTIONAL, True)):
        curve = mixture.divided(samples, latents, by_frequency=by_frequency)
        _, drawn_needed, needed = sampling.samples_saved(drawn, curve)
        result["pass_at_k"][name] = curve[powers(samples) - 1].tolist()
        result["ratio"][name] = float(drawn_needed / needed)
    return result


def attributed(strategies: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """(D,) the strategy of each draw; one that the judge named none for, as of a trace with a
    mistake, has the commonest strategy of the draws in which the same latent is read.

    Args:
        strategies: (D,) int, -1 where the judge named none; `latents` likewise, as read.
    """
    known = (strategies >= 0) & (latents >= 0)
    if not known.any():
        return strategies
    counts = np.zeros((latents.max() + 1, strategies.max() + 1), np.int64)
    np.add.at(counts, (latents[known], strategies[known]), 1)
    commonest = np.where(counts.any(1), counts.argmax(1), -1)
    # a latent of -1, which was not read, takes the last entry
    of_latent = np.append(commonest, -1)
    return np.where(strategies >= 0, strategies, of_latent[latents])
