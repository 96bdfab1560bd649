"""The running mean of the trained weights, which takes the noise of the last steps out of them
(Polyak and Juditsky 1992). Held-out records decide whether a run ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Steps of the mean's memory, as a share of the run's: it reaches back to where the rate is low.
MEMORY_SHARE = 0.05
FIRST_STEPS = 10  # in which the mean is one of all steps so far, about


class WeightAverage:
    """Exponential running mean of a model's trained weights.

    Args:
        model: its parameters that need a gradient are averaged, and are where the mean begins.
        steps: of the whole run.
    """

    def __init__(self, model: torch.nn.Module, steps: int) -> None:
        memory = max(2.0, MEMORY_SHARE * steps)  # in steps
        self.decay = 1 - 1 / memory
        self._trained: dict[str, torch.nn.Parameter] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._trained[name] = parameter
                self.tensors[name] = parameter.detach().clone()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after `step` steps."""
        at_first = step / (FIRST_STEPS + step)
        decay = min(self.decay, at_first)
        averages = list(self.tensors.values())
        weights = [parameter.detach() for parameter in self._trained.values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model has the mean weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def adopt(self) -> None:
        """Gives the model the mean weights for good."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchanges the average with the weights in the model."""
        for name, weight in self._trained.items():
            before = weight.detach().clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(before)
