"""A first posterior without labels: which completions of different prompts
were made in the same way.

Prompt content dominates hidden states. Two things leave it behind: similarities instead of states
(which earlier token of y, and which token of x, each part of y resembles), and subtracting, for
each prompt, the mean over its completions. On such features completions are clustered
(`clustering`), by what all of y tells and by what its beginning does. No label is read.

Shapes: N rows, F features, T tokens, S supervised tokens, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from twcli.data.template import Encoded, Template
from twcli.discovery.assignment import assign_groups
from twcli.discovery.clustering import (
    ENOUGH,
    FINALISTS,
    MOST_CLUSTERS,
    PAIRED_FINALISTS,
    alternatives,
    best_clustering,
    best_count,
    clustering_work,
    starts_of,
)
from twcli.discovery.ridge import above_chance, one_hot, ridge_map, told_apart
from twcli.discovery.spaces import Centring, Space, in_pairs
from twcli.models.reading import Layout, fast_batch_tokens, read_rows

FIRST_TOKENS = 8
# of y's tokens, finest where it begins
WINDOWS = ((0, 2), (2, 4), (4, 6), (6, 8), (8, 12), (12, 16), (16, 24), (24, None))
LAGS = 12
PROMPT_TOKENS = 24  # of x that y is compared with
LAYERS = 6  # at most, evenly spaced: the rest says little more and costs memory
FIT_PROMPTS = 3000  # prompts that are clustered; all others are only assigned
COUNT_PROMPTS = 1500  # of them, in which the number of latents is looked for
BLOCK_PROMPTS = 1024
PROBE_PROMPTS = 1000  # by which a run is judged

# Kinds of features, and which of them are read together. A strategy is chosen before it is written:
# names that y's beginning tells are those that a generator can act on, and "the way that turns out
# short" is not one of them, though all of y tells it as well. And it is a way of going on from x:
# "the way whose second number is odd", which the states tell as well, is none, so the beginning has
# a say by what it resembles and not by what it is.
STATES, FIRST_STATES, FIRST_SIMILARITIES, LATER_SIMILARITIES = range(4)
WHOLE = (STATES, FIRST_STATES, FIRST_SIMILARITIES, LATER_SIMILARITIES)
VIEWS = (WHOLE, (FIRST_SIMILARITIES,))
# from which their number is found
STARTS = ((STATES, FIRST_STATES), (FIRST_SIMILARITIES, LATER_SIMILARITIES), WHOLE)
MORE_STARTS = (*STARTS, (FIRST_STATES, FIRST_SIMILARITIES))

Features = tuple[np.ndarray, ...]  # (N, F) of each kind
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def _silent(_label: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _count: None)


@dataclass(frozen=True)
class WarmStart:
    """The held posterior.

    Attributes:
        latent_N: (N,) int64, -1 for rows whose prompt has fewer than two distinct completions.
        score: how well linear maps tell the clusters of prompts that they were not fitted on:
            mean fitted value of a row's cluster, from 0 (chance) to 1, and of that the mean over
            all of y and its beginning.
        agreement: mean share of fitted rows on which the starts agree with
            the kept one, names matched.
        prompts: prompts with at least two distinct completions.
        latents: K.
        used: how many of them have rows, those numbered from 0; fewer than K where no prompt
            has so many alternatives.
        gains: what speaks for each K that was tried, where K was not given
            (`clustering.best_count`).
    """

    latent_N: np.ndarray
    score: float
    agreement: float
    prompts: int
    latents: int
    used: int
    gains: dict[int, float]


def groups_of(encoded: Encoded) -> list[np.ndarray]:
    """For each prompt with two or more distinct completions: its
    distinct rows' first occurrences.
    """
    _, first = np.unique(encoded.row_hash, axis=0, return_index=True)
    first.sort()
    prompt = encoded.prompt_index[first]
    order = np.argsort(prompt, kind="stable")
    cuts = np.flatnonzero(np.diff(prompt[order])) + 1
    return [first[part] for part in np.split(order, cuts) if len(part) > 1]


def warm_start(
    model: PreTrainedModel,
    template: Template,
    encoded: Encoded,
    latents: int | None,
    *,
    seed: int,
    batch_tokens: int,
    varlen: bool = False,
    progress: Progress = _silent,
) -> WarmStart | None:
    """Clusters all rows of prompts with several completions; None where no
    prompt has two distinct ones.

    Args:
        latents: K; None finds it.
        varlen: as in `reading.read_rows`.
        progress: opens a bar (label, total) that is called with increments.
    """
    groups = groups_of(encoded)
    if not groups:
        return None
    rng = np.random.default_rng([seed, 1])
    groups = [groups[i] for i in rng.permutation(len(groups))]
    fit, rest = groups[:FIT_PROMPTS], groups[FIT_PROMPTS:]

    sizes, gains = [len(g) for g in fit], {}
    with progress("warm start: reading", sum(sizes)) as advance:
        features = pooled_features(
            model, template, encoded, fit, batch_tokens, advance, varlen=varlen
        )
    if latents is None:
        with progress("warm start: how many latents", MOST_CLUSTERS - 1) as advance:
            latents, gains = _counted(features, sizes, seed, advance)
    pairs = in_pairs(sizes)
    centring = Centring.fit(features, sizes, keep=pairs)
    centring(features, sizes)
    space = Space.fit(features, seed, views=VIEWS)
    views = space(features)
    finalists = PAIRED_FINALISTS if pairs else FINALISTS

    def clustered(count: int) -> tuple[np.ndarray, float, float]:
        draws = copy.deepcopy(rng)  # the same whether fewer are found or asked for
        with progress(
            "warm start: clustering", clustering_work(len(MORE_STARTS), finalists)
        ) as advance:
            starts = starts_of(
                (space.scaled(features, kinds) for kinds in MORE_STARTS), sizes, count, draws
            )
            return best_clustering(starts, views, sizes, count, draws, advance, finalists=finalists)

    wanted, found = latents, clustered(latents)
    while (fewer := alternatives(found[0], sizes, wanted)) < wanted and fewer > 1:
        again = clustered(fewer)
        if above_chance(again[1], fewer) < ENOUGH * above_chance(found[1], wanted):
            break  # two strategies that no x has together
        wanted, found = fewer, again
    clusters, score, agreement = found
    names, clusters = np.unique(clusters, return_inverse=True)  # some may have lost all their rows
    used = len(names)
    weights = ridge_map(views[0]) @ one_hot(clusters, used)

    latent = np.full(len(encoded), -1, np.int64)
    latent[np.concatenate(fit)] = clusters
    with progress("warm start: all other rows", sum(map(len, rest))) as advance:
        for block in _blocks(rest, BLOCK_PROMPTS):
            features = pooled_features(
                model, template, encoded, block, batch_tokens, advance, varlen=varlen
            )
            sizes = [len(g) for g in block]
            centring(features, sizes)
            latent[np.concatenate(block)] = assign_groups(
                -(space.points(features, 0) @ weights), sizes
            )
    _, first, inverse = np.unique(encoded.row_hash, axis=0, return_index=True, return_inverse=True)
    return WarmStart(
        latent[first][inverse.reshape(-1)], score, agreement, len(groups), latents, used, gains
    )


def _counted(
    features: Features, sizes: list[int], seed: int, advance: Callable[[int], None]
) -> tuple[int, dict[int, float]]:
    """`best_count` of the first prompts. Their means are left out: by them a strategy's completions
    could be told apart by x.
    """
    features = tuple(kind.copy() for kind in features)
    Centring.fit(features, sizes, keep=False)(features, sizes)
    space, counted = Space.fit(features, seed), sum(sizes[:COUNT_PROMPTS])
    features = tuple(kind[:counted] for kind in features)
    kinds = [space.scaled(features, kinds) for kinds in STARTS]
    return best_count(space(features), kinds, sizes[:COUNT_PROMPTS], seed, advance)


@dataclass(frozen=True)
class Probe:
    """Completions by which a run is judged without labels: their features under the frozen model,
    to be told apart by latent.

    Attributes:
        rows: (N,) of the data, prompt by prompt.
        sizes: rows of each prompt.
        points: (N, D) prompt-centred.
    """

    rows: np.ndarray
    sizes: list[int]
    points: np.ndarray

    def told_apart(self, soft_NK: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`ridge.told_apart` of each row's probability of each latent."""
        return told_apart(self.points, self.sizes, soft_NK, seed)


def probe_of(
    model: PreTrainedModel,
    template: Template,
    encoded: Encoded,
    *,
    seed: int,
    batch_tokens: int,
    varlen: bool = False,
    progress: Progress = _silent,
) -> Probe | None:
    """Up to `PROBE_PROMPTS` prompts with several completions; None where
    there are fewer than two.
    """
    groups = groups_of(encoded)
    chosen = [
        groups[i] for i in np.random.default_rng([seed, 7]).permutation(len(groups))[:PROBE_PROMPTS]
    ]
    if len(chosen) < 2:
        return None
    with progress("frozen features", sum(map(len, chosen))) as advance:
        features = pooled_features(
            model, template, encoded, chosen, batch_tokens, advance, varlen=varlen
        )
    sizes = [len(g) for g in chosen]
    Centring.fit(features, sizes, keep=False)(features, sizes)
    return Probe(np.concatenate(chosen), sizes, Space.fit(features, seed).points(features, 0))


def _blocks(items: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# Features


def pooled_features(
    model: PreTrainedModel,
    template: Template,
    encoded: Encoded,
    groups: list[np.ndarray],
    batch_tokens: int,
    progress: Any = None,
    *,
    varlen: bool = False,
) -> Features:
    """(rows of all groups, F) float32 of each kind, in the groups' order; no row is in two of them.

    Args:
        varlen: as in `reading.read_rows`.
    """
    rows = np.concatenate(groups)
    features: list[np.ndarray] = []
    read = partial(_pooled, model, template, encoded)
    # the states of all layers lie in memory, of a batch a core
    batch_tokens = min(batch_tokens, fast_batch_tokens(model))
    for places, values in read_rows(
        model, encoded, rows, read, batch_tokens=batch_tokens, varlen=varlen
    ):
        features = features or [np.empty((len(rows), v.shape[1]), np.float32) for v in values]
        for feature, value in zip(features, values, strict=True):
            feature[places] = value
        if progress:
            progress(len(places))
    return tuple(features)


@torch.no_grad()
def _pooled(
    model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray, *, varlen: bool
) -> Features:
    """(R, F) of a few layers: normalised states averaged over y and over its first tokens;
    similarities of y by windows.
    """
    prompts, targets, device = (
        encoded.prompt_lengths[rows],
        encoded.target_lengths[rows],
        model.device,
    )
    layout = Layout.of(model, template, encoded, rows, encoded.lengths[rows], varlen=varlen)
    # x stands between the head and the middle
    frame, first = template.frame, len(template.frame.head)
    x_lengths = prompts + 1 - first - len(frame.middle) - len(frame.lead)
    columns = np.arange(targets.max())
    active, in_prompt = (
        torch.from_numpy(inside).to(device)
        for inside in (columns < targets[:, None], np.arange(PROMPT_TOKENS) < x_lengths[:, None])
    )
    head = active & (torch.arange(len(columns), device=device) < FIRST_TOKENS)
    y_RS = layout.places(prompts[:, None] + 1 + columns)
    x_RX = layout.places(
        np.broadcast_to(first + np.arange(PROMPT_TOKENS), (len(rows), PROMPT_TOKENS))
    )
    layers = layout.hidden(model, all_layers=True)
    features: list[list[torch.Tensor]] = [[] for _ in WHOLE]
    for layer in np.unique(
        np.linspace(0, len(layers) - 1, min(LAYERS, len(layers))).round().astype(int)
    ).tolist():
        hidden = torch.nn.functional.layer_norm(layers[layer].float(), layers[layer].shape[-1:])
        y = hidden[y_RS] * active[..., None]
        features[STATES].append(y.sum(1) / active.sum(1, keepdim=True))
        features[FIRST_STATES].append((y * head[..., None]).sum(1) / head.sum(1, keepdim=True))
        for (_, last), similar in zip(
            WINDOWS, _similarities(y, hidden[x_RX] * in_prompt[..., None], active), strict=True
        ):
            features[
                LATER_SIMILARITIES if last is None or last > FIRST_TOKENS else FIRST_SIMILARITIES
            ].append(similar)
    return tuple(torch.cat(kind, dim=1).cpu().numpy() for kind in features)


def _similarities(
    y_RSH: torch.Tensor, x_RXH: torch.Tensor, active_RS: torch.Tensor
) -> list[torch.Tensor]:
    """For each window of y: mean scalar product with each token of x, and with y's own token
    `lag` before, per dimension.
    """
    R, S, H = y_RSH.shape
    with_x = y_RSH @ x_RXH.transpose(1, 2) / H
    with_y = y_RSH.new_zeros(R, S, LAGS)
    for lag in range(1, min(LAGS, S - 1) + 1):
        with_y[:, lag:, lag - 1] = (y_RSH[:, lag:] * y_RSH[:, :-lag]).mean(-1)
    both = torch.cat([with_x, with_y], dim=2)
    return [
        both[:, first:last].sum(1) / active_RS[:, first:last].sum(1, keepdim=True).clamp(min=1)
        for first, last in WINDOWS
    ]
