"""Figures of completions that a judge has seen: right answers, and whether the run still carries
out each strategy. Shapes: G completions of the run, F of the frozen model, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twcli.discovery.score import ratio
from twcli.evaluation.intervals import Figures, with_intervals
from twcli.training.retention import Retention


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


def answer_accuracy(
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
        accuracy = ratio(right, known)
        return {"answer_accuracy": accuracy}

    return with_intervals(figures, len(known_P), bootstrap, rng)


def retention_entries(
    retained: Sequence[Retention],
    mapping: dict[str, str | None] | None,
    labels: Sequence[str | None] | None,
    sampled: Generations | None,
    frozen_sampled: Generations | None,
    bootstrap: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """An entry for each latent: what became of its completions, and whether its strategy is still
    carried out. Without a judge `strategy` and what follows it are null.
    """
    entries: list[dict[str, Any]] = []
    names = ("obeyed", "frozen_obeyed", "right", "frozen_right")
    for latent in retained:
        entry = latent.as_dict()
        entry |= {"strategy": None} | {f"{n}{s}": None for n in names for s in ("", "_ci")}
        strategy = (mapping or {}).get(str(latent.latent))
        if strategy is not None and sampled is not None and frozen_sampled is not None:
            entry["strategy"] = strategy
            entry |= with_intervals(
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
    if known:
        share = sum(label == strategy for label in known) / len(known)
    else:
        share = 0.0

    def per_prompt(prompts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """How many of each prompt's completions are chosen."""
        weights = chosen.astype(float)
        return np.bincount(prompts, weights, minlength=count)

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
        def share_of(some_P: np.ndarray, all_P: np.ndarray) -> float | None:
            return ratio(weight_P @ some_P, weight_P @ all_P)

        drawn = share_of(of_it_P, drawn_P)
        carried = None if drawn is None else ratio(drawn, share)
        return {
            "obeyed": share_of(obeyed_P, asked_P),
            "frozen_obeyed": None if carried is None else min(carried, 1.0),
            "right": share_of(right_P, known_P),
            "frozen_right": share_of(right_frozen_P, known_frozen_P),
        }

    return figures
