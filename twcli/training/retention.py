"""Is each strategy still written as well as the frozen model wrote it? `twcli train` says so at its
end, `twcli eval` shows it for each latent, and the score of a run falls with a latent that is not.

A completion of latent k has the likelihood sum_z p(z|x) p(y|x,z) under the run and p(y|x) under the
frozen model, which also has to choose the strategy before it writes it. Their mean log ratio over
the completions of one latent is its gain. The mean over all completions hides a strategy that was
lost: the others gain what it loses.

A gain below 0 may come from the choice alone: a model that was trained on a prompt's completions
knows which strategies they take, a router does not. A strategy is lost where it is also written
worse: where the generator, given the latent, finds its completions less likely than the frozen
model does once it has chosen, for which it pays -log of the latent's share on average.

A frozen model that was trained on the same records knows them by heart, and what is trained from
it then finds all of them less likely, though no strategy is lost. On these records that looks like
a loss that all latents share (`lost_latents`): `twcli train` gives both bounds, new records decide.

Shapes: N records, K latents. Nats an example.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from twcli.discovery.probe import Probe
from twcli.discovery.score import Predictability

CONFIDENCE = 0.95
MEMORY = 2.0  # what memory costs one latent, at most, in units of what it costs the others


@dataclass(frozen=True)
class Retention:
    """What became of the completions of one latent.

    Attributes:
        latent: its number.
        records: completions that have it.
        frozen_nll: mean NLL under the frozen model.
        generator_nll: mean NLL under the generator, given this latent.
        gain: mean of the frozen model's NLL minus the run's, the sum over z exact.
        gain_ci: Student's 95 % interval of that mean, None for a single record.
        written_gain: the same of the generator given the latent, against the frozen model after its
            choice.
        written_gain_ci: its interval.
    """

    latent: int
    records: int
    frozen_nll: float
    generator_nll: float
    gain: float
    gain_ci: tuple[float, float] | None
    written_gain: float
    written_gain_ci: tuple[float, float] | None

    @property
    def below(self) -> bool:
        """Whether the run is worse than the frozen model by more than the interval, and not only in
        the choice among latents.
        """
        intervals = (self.gain_ci, self.written_gain_ci)
        return all(interval is not None and interval[1] < 0 for interval in intervals)

    def as_dict(self) -> dict[str, Any]:
        """For JSON and pages."""
        values = dataclasses.asdict(self)
        for name in ("gain_ci", "written_gain_ci"):
            values[name] = values[name] and list(values[name])
        return {**values, "retained": self.retained, "below": self.below}

    @property
    def decisive(self) -> tuple[float, tuple[float, float] | None]:
        """The higher of the two gains, and its interval."""
        if self.written_gain > self.gain:
            return self.written_gain, self.written_gain_ci
        return self.gain, self.gain_ci

    @property
    def retained(self) -> float:
        """From 0 to 1: how much of the frozen model's distribution of these completions is left, up
        to a constant in the bound (Bretagnolle and Huber 1979).
        """
        return math.exp(min(0.0, self.decisive[0]))


def retention(
    latent_N: np.ndarray,
    frozen_N: np.ndarray,
    marginal_N: np.ndarray,
    generator_NK: np.ndarray,
) -> list[Retention]:
    """One entry for each latent that has records, in order.

    Args:
        latent_N: int, the latent that the naming or the posterior gave each record; -1 for none.
        frozen_N, marginal_N: NLL under the frozen model and under the run.
        generator_NK: NLL under the generator with each latent.
    """
    found = []
    for latent, rows, gain_n, written_n in _gains(latent_N, frozen_N, marginal_N, generator_NK):
        several = len(rows) > 1
        found.append(
            Retention(
                latent=latent,
                records=len(rows),
                frozen_nll=float(frozen_N[rows].mean()),
                generator_nll=float(generator_NK[rows, latent].mean()),
                gain=float(gain_n.mean()),
                gain_ci=mean_interval(gain_n) if several else None,
                written_gain=float(written_n.mean()),
                written_gain_ci=mean_interval(written_n) if several else None,
            )
        )
    return found


def _gains(
    latent_N: np.ndarray, frozen_N: np.ndarray, marginal_N: np.ndarray, generator_NK: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(latent, its n rows, their gains (n,), their gains in writing (n,)) of latents with rows."""
    named = int((latent_N >= 0).sum())
    for latent in range(generator_NK.shape[1]):
        rows = np.flatnonzero(latent_N == latent)
        if not len(rows):
            continue
        frozen_n = frozen_N[rows]
        # at most all that the frozen model pays
        choice = min(math.log(named / len(rows)), float(frozen_n.mean()))
        yield (
            latent,
            rows,
            frozen_n - marginal_N[rows],
            frozen_n - choice - generator_NK[rows, latent],
        )


def mean_interval(values_n: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of a mean.

    Args:
        values_n: (n,) two values or more.
    """
    n = len(values_n)
    mean = values_n.mean()
    quantile = student.ppf((1 + CONFIDENCE) / 2, n - 1)
    deviation = values_n.std(ddof=1)
    half = quantile * deviation / math.sqrt(n)
    return float(mean - half), float(mean + half)


def judged_by_probe(
    probe: Probe,
    soft_NK: np.ndarray,
    generator_NK: np.ndarray,
    frozen_N: np.ndarray,
    marginal_N: np.ndarray,
    seed: int,
    found: Sequence[Retention],
    *,
    kept: Container[int] = (),
) -> Predictability:
    """What the run's score is made of.

    A record's latent is the one that would write it with the highest probability: training and
    evaluation know that of the same records alike.

    Args:
        soft_NK: responsibilities, proportional to p(y|x,z), of the probe's rows.
        generator_NK: their NLL under the generator with each latent.
        frozen_N, marginal_N: their NLL under the frozen model and under the run.
        found: what `retention` has of these rows and `soft_NK`'s latents.
        kept: latents of which nothing was lost, whatever the records say.
    """
    latent_N = soft_NK.argmax(1)
    below_K = np.zeros(soft_NK.shape[1], bool)
    for entry in found:
        below_K[entry.latent] = entry.below and entry.latent not in kept
    gain_N = frozen_N - marginal_N
    for latent, rows, gain_n, written_n in _gains(latent_N, frozen_N, marginal_N, generator_NK):
        if latent in kept:
            gain_N[rows] = np.maximum(gain_n, 0.0)
        elif gain_n.mean() < 0 and written_n.mean() > gain_n.mean():
            gain_N[rows] = written_n
    predicted_N, upper_bound_N = probe.predicted(soft_NK, seed)
    return Predictability(predicted_N, upper_bound_N, gain=gain_N, latent=latent_N, below=below_K)


def lost_latents(found: Sequence[Retention]) -> frozenset[int]:
    """Latents that are below the frozen model by more than `MEMORY` times what the others are: what
    all share may be the frozen model's memory of the records. Both gains say so beyond doubt.
    """
    return frozenset(
        entry.latent
        for entry in found
        if entry.below
        and _beyond_others(entry, found, "gain")
        and _beyond_others(entry, found, "written_gain")
    )


def _beyond_others(entry: Retention, found: Sequence[Retention], name: str) -> bool:
    """Whether a latent lost more than the others did, beyond chance: what all lose together is no
    loss of a strategy.

    Args:
        name: of the figure, in nats a token.
    """
    others = [other for other in found if other.latent != entry.latent]
    if not others:
        return True
    shared = min(0.0, float(np.mean([getattr(other, name) for other in others])))
    errors = [_half_interval(other, name) for other in others]
    # of a mean of independent means; what is not known to be shared is not taken off
    if shared:
        half = math.hypot(*errors) / len(others)
    else:
        half = 0.0
    apart = getattr(entry, name) - MEMORY * shared
    uncertainty = math.hypot(_half_interval(entry, name), MEMORY * half)
    return bool(apart + uncertainty < 0)


def _half_interval(entry: Retention, name: str) -> float:
    """Half the width of a figure's interval, 0 where it has none."""
    interval: tuple[float, float] | None = getattr(entry, f"{name}_ci")
    if interval is None:
        return 0.0
    low, high = interval
    return (high - low) / 2


def retention_lines(found: Sequence[Retention], lost: Container[int]) -> list[str]:
    """What `twcli train` says of it, the latents that are lost one by one.

    Args:
        lost: as of `lost_latents`.
    """
    if not found:
        return []
    below = [entry for entry in found if entry.below or entry.latent in lost]
    if not below:
        worst = min(found, key=lambda entry: entry.decisive[0])
        return [
            "retention: no latent is below the original model; the lowest gain is that of "
            f"z{worst.latent}, {worst.decisive[0]:+.2f} nats per example"
        ]
    lines = []
    for entry in below:
        if entry.latent not in lost:
            continue
        gain, interval = entry.decisive
        if interval:
            between = f" ({interval[0]:.2f} to {interval[1]:.2f})"
        else:
            between = ""
        lines.append(
            f"retention: z{entry.latent} is below the original model, {gain:+.2f} nats per example"
            f"{between}, on {entry.records:,} of its records: {entry.retained:.0%} of that "
            "strategy is left; train longer, or with a lower --lr"
        )
    if shared := [entry for entry in below if entry.latent not in lost]:
        names = ", ".join(f"z{entry.latent} {entry.decisive[0]:+.2f}" for entry in shared)
        lines.append(
            f"retention: below the original model on records of --data: {names} nats per example, "
            "no latent much more than the others. Either all lost a little, or the original model "
            "was trained on these records and has memorised them: eval on new records decides"
        )
    return lines
