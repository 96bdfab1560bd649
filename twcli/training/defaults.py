"""What `twcli train` chooses where an option is left open: from the model's size, the records and
their tokens. No model is run and nothing is read.

Measured on models of 0.1 M to 135 M parameters (`docs/results.md`, `docs/natural.md`); above that
the values extrapolate.
"""

from __future__ import annotations

from dataclasses import dataclass

# Above it low-rank updates are trained: AdamW on all weights takes four times the weights' memory.
FULL_PARAMETERS = 50_000_000
PASSES = 3.0  # over the data, within the limits below
FULL_STEPS = (1000, 2000)  # least and most
LORA_STEPS = (150, 2000)
FULL_BATCH_TOKENS = 2048
LORA_BATCH_TOKENS = 600
LEAST_BATCH_ROWS = 8  # rows of mean length that a batch holds at least
FULL_LR, FULL_WIDTH = 2e-3, 64
FULL_LR_STEPS = 1000  # of longer trainings the rate is smaller
LORA_LR, LORA_WIDTH = 2e-3, 576


@dataclass(frozen=True)
class Length:
    """How long a training is.

    Attributes:
        steps: optimiser steps.
        passes: over the records.
        records: that are trained on.
    """

    steps: int
    passes: float
    records: int

    def __str__(self) -> str:
        if self.passes < 10:
            passes = f"{self.passes:.1f}"
        else:
            passes = f"{self.passes:,.0f}"
        steps = f"{self.steps:,}"
        records = f"{self.records:,}"
        return f"{steps} steps = {passes} passes over {records} records"


def adaptation(parameters: int) -> str:
    """What `--adapt` is for a model of so many parameters."""
    return "full" if parameters <= FULL_PARAMETERS else "lora"


def peak_learning_rate(adapt: str, width: int, steps: int) -> float:
    """Wider layers need smaller steps, about in proportion (Yang et al. 2022, tensor programs V);
    low-rank updates, which begin at zero, larger ones. Where all weights are trained, a rate that
    few steps need harms in many what the model had learned, so the rate falls with their number.

    Args:
        adapt: "lora" or "full".
        width: hidden size.
        steps: of the training.
    """
    if adapt == "lora":
        return LORA_LR * min(1.0, LORA_WIDTH / width)
    return FULL_LR * min(1.0, FULL_WIDTH / width) * min(1.0, FULL_LR_STEPS / steps)


def batch_tokens(adapt: str, mean_length: float) -> int:
    """Tokens a batch, padding included: few where a step is dear, but a few rows of any length.

    Args:
        adapt: "lora" or "full".
        mean_length: tokens a row, the latent section included.
    """
    least = int(LEAST_BATCH_ROWS * mean_length)
    return max(least, LORA_BATCH_TOKENS if adapt == "lora" else FULL_BATCH_TOKENS)


def default_steps(adapt: str, steps_a_pass: float) -> int:
    """Optimisation steps: `PASSES` over the data; small data more often, as z has to be learned at
    all, and large data in part.

    Args:
        adapt: "lora" or "full".
        steps_a_pass: batches that hold all records once.
    """
    least, most = LORA_STEPS if adapt == "lora" else FULL_STEPS
    steps = round(PASSES * steps_a_pass)
    return int(min(most, max(least, steps)))


def duration(seconds: float) -> str:
    """A duration in the largest units that matter: "40 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        if minutes:
            return f"{hours} h {minutes} min"
        return f"{hours} h"
    days, hours = divmod(hours, 24)
    if hours:
        return f"{days} d {hours} h"
    return f"{days} d"
