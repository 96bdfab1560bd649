"""What a synthetic task is: prompts, strategies that each give one trace, a
judge that distinguishes them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def last_part(tokens: Sequence[str]) -> str:
    """What follows the last bar, all of it where there is none."""
    return " ".join(tokens).rpartition("|")[2].strip()


@dataclass(frozen=True)
class Task:
    """One task; every trace is a text of space-separated tokens.

    Attributes:
        name: as `make_data.py` takes it.
        sample_prompt: draws one prompt x.
        strategies: name -> function from x to its trace y, in a fixed order.
        answer: x -> its right final answer.
        answer_is_right: (x, tokens of y) -> whether y ends in it; may raise only
            for an x that is no prompt.
        admits: prompts it refuses are drawn again.
        weights: x -> the mixture's weights in the order of `strategies`; they need not sum to one.
    """

    name: str
    sample_prompt: Callable[[random.Random], str]
    strategies: dict[str, Callable[[str], str]]
    answer: Callable[[str], str]
    answer_is_right: Callable[[str, list[str]], bool]
    admits: Callable[[str], bool] = lambda x: True
    weights: Callable[[str], Sequence[float]] | None = None

    def traces(self, x: str) -> dict[str, str]:
        """Strategy name -> its y for x."""
        return {name: strategy(x) for name, strategy in self.strategies.items()}

    def is_usable(self, x: str) -> bool:
        """Whether a trace tells the strategy: x is admitted and no two strategies agree on y."""
        return self.admits(x) and len(set(self.traces(x).values())) == len(self.strategies)

    def mixture(self, x: str) -> Sequence[float]:
        return self.weights(x) if self.weights else [1.0] * len(self.strategies)

    def judge(self, x: str, y: str) -> tuple[str | None, bool | None]:
        """(strategy whose trace is y, whether its answer is right); (None,
        None) where x is no prompt.
        """
        try:
            tokens = y.split() if isinstance(y, str) else []
            traces = self.traces(x)
            correct = self.answer_is_right(x, tokens)
        except (ValueError, AttributeError, TypeError):
            return None, None
        text = " ".join(tokens)
        return next((name for name, trace in traces.items() if trace == text), None), correct
