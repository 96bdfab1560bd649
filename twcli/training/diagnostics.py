"""Does the weighting have something to work on? Pure figures of b_t, of l_t(z) and of
gradients, and what to do.

`twcli train` logs them at every step, `twcli eval` and `twcli inspect` show them.
They cost no pass of a model.

Shapes: B rows, K latents, S supervised tokens. Nats and tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from twcli.discovery.information import information
from twcli.training.degenerate import DEGENERATE_FLAT, DEGENERATE_ROWS
from twcli.training.loss import masked_token_nll_per_example
from twcli.training.stages import REFINE, STAGE_NAMES, turns_of

# of log K: z that moves an example's token losses by less leaves the posterior where the router is
INSENSITIVE_SHARE = 0.1
BOTTLENECK_TOKENS = 1.5  # effective t0 in tokens below this, while z carries less than
BOTTLENECK_SHARE = 0.5  # this share of log K
WINDOW_SHARE = 0.1  # of the steps for which a condition must hold before it is reported
WINDOW_STEPS = (5, 50)  # least and most of them

SUMMARY = (
    "informative",
    "informative_tokens",
    "uniform_rows",
    "z_sensitivity",
    "z_sensitivity_weighted",
    "z_sensitivity_sum",
    "amplification",
    "expected_amplification",
)


@torch.no_grad()
def row_figures(
    nll_BKS: torch.Tensor,
    active_BS: torch.Tensor,
    weights_BS: torch.Tensor | None,
    log_q_BK: torch.Tensor,
    tau: float,
) -> dict[str, torch.Tensor]:
    """Figures (B,) of each row; those that need b_t are left out where `weights_BS` is None.

    `informative`: (sum w)^2 / (S sum w^2), the effective t0 / T; NaN for a row without mass.
    `informative_tokens`: the same times S, the effective t0 in tokens; NaN for a row without mass.
    `uniform_rows`: 1 where sum w <= tau, so that the row takes the uniform average, else 0.
    `z_sensitivity`, `z_sensitivity_weighted`: standard deviation of l_t(z) over the K latents in
    nats a token,
        averaged over tokens uniformly and with the weights (as the loss does, below tau uniformly).
    `z_sensitivity_sum`: those deviations summed over the row's tokens, nats an example.
    `gradient_uniform`, `gradient_weighted`: squared norm of the gradient of sum_z q(z)
    R(z), and of its weighted
        counterpart, with respect to the posterior's logits: q(z) (R(z) - sum_z' q(z') R(z')).
    """
    active_BKS = active_BS[:, None, :]
    # l_t - l_t(z0) has the same spread and loses no digits where all z agree.
    spread_BS = (nll_BKS - nll_BKS[:, :1]).std(dim=1, correction=0)
    uniform_BK = masked_token_nll_per_example(nll_BKS, active_BKS)
    figures = {
        "z_sensitivity": masked_token_nll_per_example(spread_BS, active_BS),
        "z_sensitivity_sum": spread_BS.masked_fill(~active_BS, 0.0).sum(-1),
        "gradient_uniform": posterior_gradient(log_q_BK, uniform_BK).square().sum(-1),
    }
    if weights_BS is None:
        return figures
    weights_BS = weights_BS.to(spread_BS.dtype).masked_fill(~active_BS, 0.0)
    mass_B = weights_BS.sum(-1)
    squares_B = weights_BS.square().sum(-1)
    tokens_B = mass_B.square() / squares_B
    weighted_BK = masked_token_nll_per_example(nll_BKS, active_BKS, weights_BS[:, None, :], tau=tau)
    return figures | {
        "informative": tokens_B / active_BS.sum(-1),
        "informative_tokens": tokens_B,
        "uniform_rows": (mass_B <= tau).to(spread_BS.dtype),
        "z_sensitivity_weighted": masked_token_nll_per_example(
            spread_BS, active_BS, weights_BS, tau=tau
        ),
        "gradient_weighted": posterior_gradient(log_q_BK, weighted_BK).square().sum(-1),
    }


def posterior_gradient(log_q_BK: torch.Tensor, reff_BK: torch.Tensor) -> torch.Tensor:
    """Gradient of sum_z q(z) R(z) with respect to the logits of q, in closed form: q(z) (R(z) - sum
    q R).

    Args:
        log_q_BK: (B, K) log-probabilities.
        reff_BK: (B, K) nats.

    Returns:
        (B, K) nats.
    """
    q_BK = log_q_BK.exp()
    weighted_BK = q_BK * reff_BK
    mean_B1 = weighted_BK.sum(-1, keepdim=True)
    return q_BK * (reff_BK - mean_B1)


def summarise_rows(rows: dict[str, torch.Tensor]) -> dict[str, float | None]:
    """Means over rows, those without mass left out of `informative` and
    `informative_tokens`; over all rows together:

    `amplification`: norm of the posterior's gradient under the weights over that under the
    uniform average; `expected_amplification`: 1 / informative, what T / t0 promises. None where
    there is nothing to divide by.
    """
    names = sorted(rows)
    # one transfer from the device for all figures
    known = torch.stack([rows[name] for name in names]).cpu().double()
    finite = known.isfinite()
    totals = known.masked_fill(~finite, 0.0).sum(1).tolist()
    counts = finite.sum(1).tolist()
    means: dict[str, float | None] = {}
    for name, total, count in zip(names, totals, counts, strict=True):
        means[name] = total / count if count else None
    uniform = means.pop("gradient_uniform")
    weighted = means.pop("gradient_weighted", None)
    if weighted is not None and uniform:
        means["amplification"] = math.sqrt(weighted / uniform)
    if informative := means.get("informative"):
        means["expected_amplification"] = 1 / informative
    return {name: means.get(name) for name in SUMMARY}


def pooled(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One step's metrics from those of its batches: means over records, `records` added up.

    Mutual information and usage are those of all records together. `amplification` is a
    ratio within each batch: its mean is one of ratios. A figure that some batches lack is
    the mean over the others.
    """
    if len(batches) == 1:
        return batches[0]
    result: dict[str, Any] = {}
    for name in batches[0]:
        known = [(b[name], b["records"]) for b in batches if b.get(name) is not None]
        total = sum(count for _, count in known)
        if not known:
            result[name] = None
        elif isinstance(known[0][0], list):
            weighted = [[count * v for v in value] for value, count in known]
            result[name] = [sum(column) / total for column in zip(*weighted, strict=True)]
        else:
            result[name] = sum(value * count for value, count in known) / total
    result["records"] = sum(b["records"] for b in batches)
    result["mutual_information"], result["usage"] = pooled_information(
        [{**b, "stage": None} for b in batches]
    )
    return result


def pooled_information(metrics: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """(mutual information in nats, latents in use) of the posterior over all
    records of several steps.

    A batch holds rows of like length and so, perhaps, of one strategy: its own mutual information
    says little. Metrics of a version that logged no masses give the last step's own. Steps of the
    stage `refine` count only where there is no other: their q is the assignment, of which the
    posterior has yet to learn.
    """
    metrics = [m for m in metrics if m.get("stage") != REFINE] or metrics
    if "posterior_mass" not in metrics[0]:
        return metrics[-1]["mutual_information"], metrics[-1]["usage"]
    records = np.array([m["records"] for m in metrics], float)
    share = records / records.sum()
    mean_K = share @ np.array([m["posterior_mass"] for m in metrics])
    mean_entropy = float(share @ [m["posterior_entropy"] for m in metrics])
    return information(mean_K, mean_entropy)


def progress_line(recent: Sequence[dict[str, Any]]) -> str:
    """The newest of several steps in a row, with the mean loss of each stage's records among them,
    and what the posterior knows: no wider than 64 columns.
    """
    newest = recent[-1]
    losses = [_mean_loss(recent, stage) for stage in turns_of(newest["stage"])]
    shown = "/".join(f"{loss:.3f}" for loss in losses if loss is not None)
    count = newest["step"]
    steps = newest["steps"]
    return (
        f"step {count:,}/{steps:,}  {STAGE_NAMES[newest['stage']]}  loss {shown}  "
        f"I(z; y) {pooled_information(recent)[0]:.2f} nats"
    )


def _mean_loss(metrics: Sequence[dict[str, Any]], stage: str) -> float | None:
    """Mean loss in nats over the records of a stage's steps, None without any."""
    those = [m for m in metrics if m["stage"] == stage]
    records = sum(m["records"] for m in those)
    if not records:
        return None
    loss = sum(m["records"] * m["loss"] for m in those)
    return loss / records


def gradient_norms(
    posterior_gradients: Iterable[torch.Tensor], latent_gradient: torch.Tensor
) -> dict[str, float | None]:
    """Euclidean norms of gradients after backward.

    Args:
        posterior_gradients: (..) of each of the posterior's own parameters; none for a closed-form
            posterior, which has no parameters.
        latent_gradient: (K P, H) of the latents' embedding rows.

    Returns:
        `posterior_gradient_norm`, None for a closed-form posterior, and `latent_gradient_norm`.
    """
    norms = torch.stack(
        [*(gradient.norm() for gradient in posterior_gradients), latent_gradient.norm()]
    ).tolist()
    return {
        "posterior_gradient_norm": math.hypot(*norms[:-1]) if len(norms) > 1 else None,
        "latent_gradient_norm": norms[-1],
    }


# The three ways in which weighting cannot help

CONDITIONS = {
    "no z-sensitivity": (
        "z moves the token losses of an example by {z_sensitivity_sum:.2f} nats in all, "
        "of log K = {log_k:.2f} that it could carry, so there is little to weight",
        "train longer or with a higher --lr, use --adapt full, give z more capacity with "
        "--latent-tokens 4, or take the history away with --history-dropout 0.2",
    ),
    "degenerate weights": (
        "{uniform_rows:.0%} of the rows have no b_t above --tau and effective t0 / T is "
        "{informative:.2f}, so the weighted average is (almost) the uniform one",
        "look at `twcli inspect` of the baseline: the model may not be entangled on this data, "
        "or the data may hold one strategy per prompt; draw completions from the model with `twcli "
        "sample`, or train with --weighting uniform",
    ),
    "single-token bottleneck": (
        "b_t lies on {informative_tokens:.1f} tokens per example and I(z; y) is "
        "{mutual_information:.2f} nats of {log_k:.2f}: later tokens read the strategy from the "
        "history and do not need z",
        "take the history away with --history-dropout 0.2, and give z more capacity with "
        "--latent-tokens 4",
    ),
}


def conditions(metrics: dict[str, Any], latents: int, weighted: bool) -> list[str]:
    """Names in `CONDITIONS` that one step's metrics meet; `weighted` is whether
    the loss uses b_t at all.
    """
    found = []
    if _below(metrics.get("z_sensitivity_sum"), INSENSITIVE_SHARE * math.log(latents)):
        found.append("no z-sensitivity")
    flat = metrics.get("informative")
    if weighted and (
        (metrics.get("uniform_rows") or 0.0) > DEGENERATE_ROWS
        or (flat is not None and flat > DEGENERATE_FLAT)
    ):
        found.append("degenerate weights")
    if _below(metrics.get("informative_tokens"), BOTTLENECK_TOKENS) and _below(
        metrics.get("mutual_information"), BOTTLENECK_SHARE * math.log(latents)
    ):
        found.append("single-token bottleneck")
    return found


def _below(value: float | None, limit: float) -> bool:
    """Whether a value is known and below a limit, in the unit of both."""
    return value is not None and value < limit


def advice(name: str, metrics: dict[str, Any], latents: int) -> str:
    """One line: the condition, its figures and what to do."""
    fact, fix = CONDITIONS[name]
    figures = {
        key: metrics.get(key) or 0.0
        for key in (
            "z_sensitivity_sum",
            "uniform_rows",
            "informative",
            "informative_tokens",
            "mutual_information",
        )
    }
    return f"{name}: {fact.format(log_k=math.log(latents), **figures)}; {fix}"


class Watch:
    """Reports a condition when it has held without a break for a tenth of the run, at
    least 5 and at most 50 steps.

    One batch says little, and every run begins with a z that means nothing.
    """

    def __init__(self, steps: int, latents: int, weighted: bool) -> None:
        least, most = WINDOW_STEPS
        self.window = min(most, max(least, round(WINDOW_SHARE * steps)))
        self.latents = latents
        self.weighted = weighted
        self.recent: deque[dict[str, Any]] = deque(maxlen=self.window)
        self.held = dict.fromkeys(CONDITIONS, 0)
        self.seen = 0
        self.reported: dict[str, int] = {}  # at which step
        self.latest: dict[str, Any] = {}

    def see(self, metrics: dict[str, Any]) -> list[str]:
        """Takes one step's metrics; gives a line for each condition that has now held for
        the window, the first time.
        """
        self.seen += 1
        self.recent.append(metrics)
        # A stage that computes one branch does not show how far z moves the losses: the last one
        # that did is kept.
        self.latest |= {name: value for name, value in metrics.items() if value is not None}
        if "mutual_information" in metrics:
            self.latest["mutual_information"] = pooled_information(self.recent)[0]
        found = conditions(self.latest, self.latents, self.weighted)
        self.held = {name: count + 1 if name in found else 0 for name, count in self.held.items()}
        new = [
            name
            for name, count in self.held.items()
            if count >= self.window and name not in self.reported
        ]
        self.reported.update(dict.fromkeys(new, self.seen))
        return [advice(name, self.latest, self.latents) for name in new]

    def standing(self, again: bool = True) -> list[str]:
        """A line for each condition that holds at the step last seen: what to say at the end.

        Args:
            again: also of those that `see` has reported within the window before that step.
        """
        just = {name for name, step in self.reported.items() if 0 < self.seen - step < self.window}
        lasting = [name for name, count in self.held.items() if count >= self.window]
        if not again:
            lasting = [name for name in lasting if name not in just]
        return [advice(name, self.latest, self.latents) for name in lasting]
