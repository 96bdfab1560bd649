"""Estimated costs of the executions of a packed forward pass, from its shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from transformers import PreTrainedModel

from twcli.kernels import flash
from twcli.kernels.packing import (
    BRANCHES,
    KERNELS,
    PLAIN,
    TREE,
    linear_weights,
    tokens_computed,
    window_of,
)

# Costs of attention, forward and backward, in multiply-adds of a linear layer: per causal score,
# per masked score, and per copied key or value. MORE_QUERIES is the overhead of a masked
# call, as extra queries per row. Measured in float32 on a CPU with heads of 16 to 64; only the
# choice between executions of similar cost depends on them.
CAUSAL_SCORE, MASKED_SCORE, COPY, MORE_QUERIES = 3.0, 1.6, 10.0, 20

Count = TypeVar("Count", float, np.ndarray)


def causal_cost(tokens: Count) -> Count:
    """Cost of attention in a causal sequence, in multiply-adds of a linear layer, per width."""
    return CAUSAL_SCORE * tokens**2 / 2


def masked_cost(queries: Count, keys: Count, copy: float) -> Count:
    """Cost of masked attention, copying of its keys included; unit as in `causal_cost`.

    Args:
        queries, keys: tokens of a row.
        copy: what copying one key costs.
    """
    return keys * (MASKED_SCORE * (queries + MORE_QUERIES) + copy)


@dataclass(frozen=True)
class Costs:
    """Estimated cost of each execution. It depends on shapes only, so that a repeated run makes the
    same choice.

    Attributes:
        linear: weights that each token is multiplied with.
        width: multiply-adds per attention score, or values per key and value, over all layers.
        window: tokens of a sliding window, beyond which only the plain execution is correct; None
            if there is no window.
    """

    linear: int
    width: int
    window: int | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Costs:
        """From the model's config and weights."""
        config = model.config.get_text_config()
        return cls(
            sum(w.numel() for w in linear_weights(model)),
            2 * config.num_hidden_layers * config.hidden_size,
            window_of(model),
        )

    def __call__(
        self, prompts: tuple[int, int], branches: tuple[int, int, int], real: int
    ) -> dict[str, float]:
        """Execution -> multiply-adds of a linear layer, for the executions that are correct here.

        Args:
            prompts: (G, P).
            branches: (B, C, Q).
            real: tokens of prompts and branches without padding.
        """
        G, P = prompts
        B, C, Q = branches
        linear = B * C * (P + Q) * self.linear
        attention = B * C * causal_cost(P + Q)
        costs: dict[str, float] = {PLAIN: linear + self.width * attention}
        if self.window is not None and P + Q > self.window:
            return costs
        linear = tokens_computed(real, G * P + B * C * Q) * self.linear
        on_prompts = G * causal_cost(P)
        on_branches = B * C * masked_cost(Q, P + Q, COPY)
        on_trees = B * masked_cost(C * Q, P + C * Q, COPY)
        costs[BRANCHES] = linear + self.width * (on_prompts + on_branches)
        costs[TREE] = linear + self.width * (on_prompts + on_trees)
        return costs


def cheapest(
    model: PreTrainedModel, prompts: tuple[int, int], branches: tuple[int, int, int], real: int
) -> str:
    """The cheapest execution by `Costs` for (G, P), (B, C, Q) and `real` tokens; `flash`, if
    usable, is always the cheapest.
    """
    costs = Costs.of(model)(prompts, branches, real)
    if BRANCHES in costs and flash.usable(model):
        return KERNELS
    return min(costs, key=costs.__getitem__)
