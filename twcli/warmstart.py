"""A first posterior without labels: clusters of the frozen model's prompt-centred hidden states.

Prompt content dominates hidden states. Subtracting, for each prompt, the mean over its completions leaves what tells
the completions apart; that distinct completions of one prompt must take distinct clusters keeps a cluster's meaning
the same from prompt to prompt. The restart of lowest inertia is kept; no label is read.

Shapes: N rows, P prompts, F features, D whitened dimensions, K clusters, T tokens, S supervised tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from transformers import PreTrainedModel

from twcli.assignment import assign_groups
from twcli.baseline import budget_batches, gather_padded, hidden_states
from twcli.template import Encoded, Template

FIRST_TOKENS = 8
LAGS = 12
DIMENSIONS = 24
FIT_PROMPTS = 2048  # prompts that fit whitening and centroids; all others are only assigned
BLOCK_PROMPTS = 1024
RESTARTS = 20
ITERATIONS = 30


@dataclass(frozen=True)
class WarmStart:
    """The held posterior.

    Attributes:
        latent_N: (N,) int64, -1 for rows whose prompt has fewer than two distinct completions.
        inertia: mean squared distance to the centroids over the fitted rows (whitened units).
        agreement: mean share of fitted rows on which the other restarts agree with the kept one, names matched.
        prompts: prompts with at least two distinct completions.
    """

    latent_N: np.ndarray
    inertia: float
    agreement: float
    prompts: int


def groups_of(encoded: Encoded) -> list[np.ndarray]:
    """For each prompt with two or more distinct completions: its distinct rows' first occurrences."""
    _, first = np.unique(encoded.row_hash, axis=0, return_index=True)
    first.sort()
    prompt = encoded.prompt_index[first]
    order = np.argsort(prompt, kind="stable")
    cuts = np.flatnonzero(np.diff(prompt[order])) + 1
    return [first[part] for part in np.split(order, cuts) if len(part) > 1]


def warm_start(model: PreTrainedModel, template: Template, encoded: Encoded, latents: int, *, seed: int,
               batch_tokens: int, progress: Any = None) -> WarmStart:
    """Clusters all rows of prompts with several completions.

    Args:
        progress: called with the number of rows read after each batch.

    Raises:
        ValueError: no prompt has two distinct completions.
    """
    groups = groups_of(encoded)
    if not groups:
        raise ValueError("no prompt has two distinct completions")
    rng = np.random.default_rng([seed, 1])
    groups = [groups[i] for i in rng.permutation(len(groups))]
    fit, rest = groups[:FIT_PROMPTS], groups[FIT_PROMPTS:]

    features = centred_features(model, template, encoded, fit, batch_tokens, progress)
    whiten = Whitening.fit(features)
    points = whiten(features)
    sizes = [len(g) for g in fit]
    centroids, inertia, agreement = synchronised_kmeans(points, sizes, latents, rng)

    cluster = np.full(len(encoded), -1, np.int64)
    cluster[np.concatenate(fit)] = assign(points, sizes, centroids)
    for block in _blocks(rest, BLOCK_PROMPTS):
        points = whiten(centred_features(model, template, encoded, block, batch_tokens, progress))
        cluster[np.concatenate(block)] = assign(points, [len(g) for g in block], centroids)
    _, first, inverse = np.unique(encoded.row_hash, axis=0, return_index=True, return_inverse=True)
    return WarmStart(cluster[first][inverse.reshape(-1)], inertia, agreement, len(groups))


def _blocks(items: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# Features


@torch.no_grad()
def centred_features(model: PreTrainedModel, template: Template, encoded: Encoded, groups: list[np.ndarray],
                     batch_tokens: int, progress: Any = None) -> np.ndarray:
    """(rows of all groups, F) float32, in the groups' order, minus each group's mean."""
    rows = np.concatenate(groups)
    order = np.argsort(-encoded.lengths[rows], kind="stable")
    features = None
    for part in budget_batches(encoded.lengths[rows], order, batch_tokens):
        values = _pooled(model, template, encoded, rows[part])
        if features is None:
            features = np.empty((len(rows), values.shape[1]), np.float32)
        features[part] = values
        if progress:
            progress(len(part))
    sizes = np.asarray([len(g) for g in groups])
    starts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(features, starts, axis=0) / sizes[:, None]
    return features - np.repeat(means, sizes, axis=0)


def _pooled(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """(R, F): of every layer the mean over y, the mean over its first tokens, and its autocorrelation at lags 1 to 12."""
    starts, prompts, targets = encoded.offsets[rows], encoded.prompt_lengths[rows], encoded.target_lengths[rows]
    ids = torch.from_numpy(gather_padded(encoded.ids, starts, encoded.lengths[rows], template.pad).astype(np.int64))
    columns = torch.arange(int(targets.max()))
    active = columns < torch.from_numpy(targets)[:, None]
    index = (torch.from_numpy(prompts)[:, None] + 1 + columns).clamp(max=ids.shape[1] - 1)
    device = model.device
    active, index = active.to(device), index.to(device)
    pools = []
    for hidden in hidden_states(model, ids.to(device), all_layers=True):
        y = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2])).float()
        y = torch.nn.functional.layer_norm(y, y.shape[-1:]) * active[..., None]
        head = active & (columns.to(device) < FIRST_TOKENS)
        pools += [y.sum(1) / active.sum(1, keepdim=True), (y * head[..., None]).sum(1) / head.sum(1, keepdim=True)]
        for lag in range(1, LAGS + 1):
            if lag < y.shape[1]:
                product = (y[:, lag:] * y[:, :-lag]).mean(-1)
                both = (active[:, lag:] & active[:, :-lag]).sum(1).clamp(min=1)
                pools.append((product.sum(1) / both)[:, None])
            else:
                pools.append(y.new_zeros(len(y), 1))
    return torch.cat(pools, dim=1).cpu().numpy()


@dataclass(frozen=True)
class Whitening:
    """Projection to the leading principal directions, each scaled to unit variance."""

    projection_FD: np.ndarray

    @classmethod
    def fit(cls, centred: np.ndarray, dimensions: int = DIMENSIONS) -> Whitening:
        covariance = centred.T.astype(np.float64) @ centred / len(centred)
        values, vectors = np.linalg.eigh(covariance)
        keep = np.argsort(values)[::-1][: min(dimensions, len(values))]
        keep = keep[values[keep] > 1e-10 * values.max()]
        return cls(vectors[:, keep] / np.sqrt(values[keep]))

    def __call__(self, centred: np.ndarray) -> np.ndarray:
        return centred @ self.projection_FD


# Clusters


def assign(points: np.ndarray, sizes: list[int], centroids: np.ndarray) -> np.ndarray:
    """Clusters (N,) of points grouped by prompt, distinct within a prompt as far as K reaches."""
    return assign_groups(_squared_distance(points, centroids), sizes)


def synchronised_kmeans(points: np.ndarray, sizes: list[int], latents: int,
                        rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """k-means under the distinctness constraint: (centroids (K, D), inertia, agreement between restarts)."""
    runs = [_one_restart(points, sizes, latents, rng) for _ in range(RESTARTS)]
    runs.sort(key=lambda run: run[1])
    best = runs[0]
    agreement = float(np.mean([_matched_share(best[2], other[2], latents) for other in runs[1:]]))
    return best[0], float(best[1]), agreement


def _one_restart(points: np.ndarray, sizes: list[int], latents: int,
                 rng: np.random.Generator) -> tuple[np.ndarray, float, np.ndarray]:
    centroids = points[rng.choice(len(points), latents, replace=len(points) < latents)]
    clusters = None
    for _ in range(ITERATIONS):
        previous, clusters = clusters, assign(points, sizes, centroids)
        if previous is not None and np.array_equal(previous, clusters):
            break
        counts = np.bincount(clusters, minlength=latents)
        sums = np.zeros_like(centroids)
        np.add.at(sums, clusters, points)
        centroids = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids)
    inertia = np.mean(np.sum((points - centroids[clusters]) ** 2, axis=1))
    return centroids, inertia, clusters


def _squared_distance(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return (points**2).sum(1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(1)


def _matched_share(one: np.ndarray, other: np.ndarray, latents: int) -> float:
    counts = np.zeros((latents, latents))
    np.add.at(counts, (one, other), 1)
    rows, columns = linear_sum_assignment(-counts)
    return counts[rows, columns].sum() / len(one)
