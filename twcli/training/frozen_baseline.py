"""b_t of the frozen model: the cache, compared with the model on a few rows, and sums over rows.

Shapes: N rows.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from twcli.config.phases import CHECK_BASELINE, Phases
from twcli.config.train import TrainConfig
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.errors import UserError
from twcli.models import baseline
from twcli.models.inputs import Inputs
from twcli.models.runtime import Say
from twcli.storage.cache import Cache

RESCORED_ROWS = 64
# Nats, mean over tokens: a cache of other weights or rows is off by 0.3 or more, another kernel by
# 1e-6 and bf16 by 0.05. The largest difference decides nothing: in bf16 one token of a thousand is
# off by half a nat.
RESCORE_LIMIT = {"fp32": 1e-3, "bf16": 0.15}


def open_baseline(
    config: TrainConfig, inputs: Inputs, device: torch.device, say: Say, phases: Phases
) -> tuple[Cache | None, dict[str, Any]]:
    """(the cache of b_t, None where b_t is the current model's; the fingerprint of b_t). Moves the
    model to the device, where some rows are scored again to compare with the cache.

    Raises:
        UserError: the cache belongs to another model, data or template.
    """
    backbone = inputs.model
    encoded = inputs.encoded
    if config.baseline_policy != "frozen":
        phases.begin(CHECK_BASELINE, "b_t is the current model's own")
        fingerprint = inputs.fingerprint()
        backbone.to(device)
        if config.baseline:
            unread = f"; {config.baseline} is not read"
        else:
            unread = ""
        say(f"baseline: b_t of the current backbone at each step{unread}")
        return None, fingerprint
    rescored = rescored_rows(encoded)
    phases.begin(CHECK_BASELINE, f"{rescored} records are scored again")
    cache, fingerprint = inputs.open_cache(cast(str, config.baseline))
    backbone.to(device)
    made_in = fingerprint["dtype"]
    mean, largest = rescore(backbone, inputs.encoder, encoded, cache, config, made_in)
    say(
        f"baseline: the cache matches the model ({rescored} of {cache.rows:,} rows "
        f"checked, mean difference {mean:.1e} nats, largest {largest:.1e}); made in {made_in}"
    )
    return cache, fingerprint


def rescored_rows(encoded: Encoded) -> int:
    """How many rows are scored again."""
    return min(RESCORED_ROWS, len(encoded))


def rescore(
    backbone: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    cache: Cache,
    config: TrainConfig,
    made_in: str,
) -> tuple[float, float]:
    """Mean and largest absolute difference in nats a token between the cache, made in the precision
    `made_in`, and the model on a few random rows.

    Raises:
        UserError: a mean that no kernel and no rounding explains.
    """
    rng = np.random.default_rng([config.seed, 2])
    rows = np.sort(rng.choice(len(encoded), rescored_rows(encoded), replace=False))
    fresh = baseline.score_flat(
        backbone, encoder, encoded, rows, batch_tokens=config.resolved_batch_tokens
    )
    stored, _ = cache.read(rows)
    differences = np.abs(fresh - stored)
    mean = float(differences.mean())
    largest = float(differences.max())
    if not mean <= RESCORE_LIMIT[made_in]:  # NaN included
        raise UserError(
            f"{config.baseline}: the model gives other b_t on {len(rows)} rows, by {mean:.3g} nats "
            "per token; run `twcli precompute --overwrite` again"
        )
    return mean, largest


def frozen_nll(
    rows: np.ndarray, inputs: Inputs, cache: Cache | None, config: TrainConfig
) -> np.ndarray:
    """(N,) nats of distinct rows in any order: the sum of their b_t,
    read where there is a cache.
    """
    if not len(rows):
        return np.empty(0)
    rows, back = np.unique(rows, return_inverse=True)
    if cache:
        flat = cache.read(rows)[0]
    else:
        flat = baseline.score_flat(
            inputs.model,
            inputs.encoder,
            inputs.encoded,
            rows,
            batch_tokens=config.resolved_batch_tokens,
        )
    lengths = inputs.encoded.target_lengths[rows]
    return np.add.reduceat(flat, np.cumsum(lengths) - lengths, dtype=np.float64)[back]
