"""How `entangle.py` trains: Muon and AdamW, batches of about one length, loss from y on.

Imported by `entangle.py`; the model is any causal language model of transformers.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM

from examples.muon import Muon
from twcli.data.encoded import Encoded
from twcli.data.padding import gather_padded
from twcli.kernels.head import head_logits
from twcli.kernels.linear import fast_linear
from twcli.models.forward import hidden_states

# padded tokens in one forward pass; a batch of long lines goes through in several
FORWARD_TOKENS = 2**15
GROUP = 32  # batches within which rows are sorted by length, so that little is spent on padding
CLIP = 1.0
WARMUP = 0.05  # share of the steps
WEIGHT_DECAY = 0.01


def fit(
    model: LlamaForCausalLM,
    encoded: Encoded,
    rows: np.ndarray,
    pad: int,
    say: Callable[[str], None],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Warm-up, then cosine decay; the loss is the mean over a batch's supervised tokens.

    Args:
        rows: (N,) to train on, each once an epoch.
        batch: rows a step.
        lr: the largest.
    """
    model.train()
    optimizers = make_optimizers(model, lr)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, steps=steps))
        for optimizer in optimizers
    ]
    batches = endless_batches(encoded.lengths, rows, batch, seed)
    started, summed, counted = time.monotonic(), torch.zeros(()), 0
    bar = tqdm(total=steps, unit="step", disable=not sys.stderr.isatty())
    for step in range(1, steps + 1):
        chosen = next(batches)
        tokens = int(encoded.target_lengths[chosen].sum()) + len(chosen)
        for piece in forward_pieces(encoded.lengths, chosen):
            with fast_linear(model):
                loss = nll_sum(model, encoded, piece, pad)
            (loss / tokens).backward()
            summed += loss.detach()
        counted += len(chosen)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for part in (*optimizers, *schedules):
            part.step()
        model.zero_grad()
        bar.update()
        if step % max(1, steps // 20) == 0 or step == steps:
            nats = summed.item() / counted
            bar.set_postfix_str(f"{nats:.3f} nats per example")
            if bar.disable:
                seconds = time.monotonic() - started
                say(f"step {step}/{steps}: {nats:.4f} nats per example, {seconds:.0f} s")
            summed, counted = torch.zeros(()), 0
    bar.close()
    model.eval()


def make_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices: two thirds of the steps that AdamW
    needs. AdamW for the rest.
    """
    parameters = list(model.named_parameters())
    matrices = [p for name, p in parameters if p.ndim > 1 and ".layers." in name]
    tables = [p for name, p in parameters if p.ndim > 1 and ".layers." not in name]
    gains = [p for _, p in parameters if p.ndim == 1]
    return [
        Muon(matrices, lr=lr, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": WEIGHT_DECAY},
                {"params": gains, "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step that counts from 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def endless_batches(
    lengths: np.ndarray, rows: np.ndarray, size: int, seed: int
) -> Iterator[np.ndarray]:
    """Rows in a seeded order, each once an epoch, neighbours in length together."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(rows)
        groups = np.split(order, range(size * GROUP, len(order), size * GROUP))
        ordered = [group[np.argsort(lengths[group], kind="stable")] for group in groups]
        batches = [
            batch for group in ordered for batch in np.split(group, range(size, len(group), size))
        ]
        yield from (batches[i] for i in rng.permutation(len(batches)))


def forward_pieces(lengths: np.ndarray, batch: np.ndarray) -> list[np.ndarray]:
    """The batch in as few parts as keep each below FORWARD_TOKENS."""
    parts = math.ceil(len(batch) * int(lengths[batch].max()) / FORWARD_TOKENS)
    return np.array_split(batch, min(parts, len(batch)))


def nll_sum(model: LlamaForCausalLM, encoded: Encoded, rows: np.ndarray, pad: int) -> torch.Tensor:
    """Summed NLL of the supervised tokens; only their positions go through the head."""
    lengths, prompts = encoded.lengths[rows], encoded.prompt_lengths[rows]
    ids = gather_padded(encoded.ids, encoded.offsets[rows], lengths, pad).astype(np.int64)
    columns = np.arange(ids.shape[1])
    # <y> is at `prompts`; y begins behind it.
    supervised = (columns > prompts[:, None]) & (columns < lengths[:, None])
    row, column = map(torch.from_numpy, np.nonzero(supervised))
    ids = torch.from_numpy(ids)
    logits = head_logits(model, hidden_states(model, ids[:, :-1])[row, column - 1])
    return torch.nn.functional.cross_entropy(logits, ids[row, column], reduction="sum")


@torch.no_grad()
def nats_per_example(
    model: LlamaForCausalLM, encoded: Encoded, rows: np.ndarray, pad: int
) -> float:
    ordered = rows[np.argsort(encoded.lengths[rows], kind="stable")]
    total = sum(
        nll_sum(model, encoded, piece, pad).item()
        for start in range(0, len(ordered), 256)
        for piece in forward_pieces(encoded.lengths, ordered[start : start + 256])
    )
    return total / len(rows)
