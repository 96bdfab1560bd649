"""The frozen model's per-token NLL b_t of y: the whole of `twcli precompute`'s arithmetic.

Shapes: R rows, T tokens, S supervised tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from twcli.errors import first_line
from twcli.head import token_nll
from twcli.packing import ATTENTION, attention_of, linear_weights, why_not_packed, window_of
from twcli.padding import budget_batches, gather_padded, prompt_by_prompt, slices
from twcli.runtime import core_by_core
from twcli.template import Encoded, Template
from twcli.varlen import Varlen, varlen_hidden_states

CACHED_VALUES = 3 * 2**18  # 3 MiB in float32: what one layer hands to the next stays in a CPU core's cache
LEAST_TOKENS, DEVICE_TOKENS = 256, 16384
COMPARED_ROWS = 8
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9, torch.bfloat16: 0.5}  # nats; rounding is far below, another result far above


def hidden_states(model: PreTrainedModel, input_ids_RT: torch.Tensor, *, all_layers: bool = False) -> Any:
    """Last hidden states (R, T, H), or with `all_layers` the tuple of every layer's, embeddings first.

    Rows are padded on the right, where a causal model's real tokens never look, so no mask is needed and
    the attention backend takes its fast causal path.
    """
    output = model.base_model(input_ids=input_ids_RT, use_cache=False, output_hidden_states=all_layers)
    return output.hidden_states if all_layers else output.last_hidden_state


def fast_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens a batch that the model reads fastest without a gradient.

    On a CPU more of them make every layer's output leave the cache, fewer make its matrix products slow; other devices want many.
    """
    if model.device.type != "cpu":
        return DEVICE_TOKENS
    widest = max(max(w.shape) for w in linear_weights(model))
    return max(LEAST_TOKENS, CACHED_VALUES // widest)


def score_rows(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray, *, batch_tokens: int,
               varlen: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """b_t of `rows`, longest first so that the largest batch is met at once; on a CPU each core reads batches of its own.

    Args:
        varlen: whether rows may be read without padding and a prompt once for all its completions; only where
            `why_not_varlen` has nothing against it.

    Yields:
        (rows of the batch (R,), their NLL one after another, float32 nats).
    """
    model.eval()
    padded = ~(varlen & _within_window(model, encoded.lengths[rows]))
    for read, batches in ((_read, _by_length(encoded, rows[padded], batch_tokens)),
                          (_read_varlen, _by_prompt(encoded, rows[~padded], batch_tokens))):
        with attention_of(model, ATTENTION) if read is _read_varlen else nullcontext():
            call = partial(read, model, template, encoded)
            yield from zip(batches, core_by_core(call, batches, model.device, alone=_keeps_state(model)), strict=True)


def _within_window(model: PreTrainedModel, lengths_R: np.ndarray) -> np.ndarray:
    """(R,) which are no longer than a sliding window, where the model has one: it would have to slide in each row for itself."""
    return lengths_R <= (window_of(model) or np.inf)


def _keeps_state(model: PreTrainedModel) -> bool:
    """Whether a pass changes the model: some position embeddings adapt to the longest sequence that was seen."""
    return any(kind in str(getattr(module, "rope_type", "")) for module in model.modules() for kind in ("dynamic", "longrope"))


@torch.no_grad()
def _read(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """NLL of each row after another in nats, from padded sequences."""
    starts, prompts, targets = encoded.offsets[rows], encoded.prompt_lengths[rows], encoded.target_lengths[rows]
    # What follows the token that predicts the last target need not be read.
    ids = gather_padded(encoded.ids, starts, prompts + targets, template.pad)
    hidden = hidden_states(model, _on(model, ids))
    row, column = (np.arange(targets.max()) < targets[:, None]).nonzero()
    return _nll(model, encoded, rows, hidden[torch.from_numpy(row), torch.from_numpy(prompts[row] + column)])


@torch.no_grad()
def _read_varlen(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """The same from one sequence without padding."""
    starts, prompts, targets = encoded.offsets[rows], encoded.prompt_lengths[rows], encoded.target_lengths[rows]
    _, leaders, prompt = np.unique(encoded.prompt_index[rows], return_index=True, return_inverse=True)
    ids = encoded.ids[slices(np.concatenate([starts[leaders], starts + prompts]), np.concatenate([prompts[leaders], targets]))]
    layout = Varlen.of(prompts[leaders], prompt, targets, model.device)
    hidden = varlen_hidden_states(model, _on(model, ids), layout)
    return _nll(model, encoded, rows, hidden[int(prompts[leaders].sum()) :])


def _nll(model: PreTrainedModel, encoded: Encoded, rows: np.ndarray, hidden_NH: torch.Tensor) -> np.ndarray:
    targets = encoded.ids[slices(encoded.offsets[rows] + encoded.prompt_lengths[rows] + 1, encoded.target_lengths[rows])]
    return token_nll(model, hidden_NH, _on(model, targets)).cpu().numpy()


def _on(model: PreTrainedModel, ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(model.device)


def _by_length(encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    lengths = encoded.prompt_lengths[rows] + encoded.target_lengths[rows]
    return [rows[places] for places in budget_batches(lengths, np.argsort(-lengths, kind="stable"), batch_tokens)]


def _by_prompt(encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Batches of at most `batch_tokens` tokens, at least one row each, in which a prompt counts once; longest first."""
    if not len(rows):
        return []
    rows = rows[prompt_by_prompt(encoded.lengths[rows], encoded.prompt_index[rows])]
    batches, start, last, tokens = [], 0, -1, 0
    columns = encoded.prompt_index[rows], encoded.prompt_lengths[rows], encoded.target_lengths[rows]
    for stop, (this, length, targets) in enumerate(zip(*columns, strict=True)):
        more = targets + length * (this != last)
        if stop > start and tokens + more > batch_tokens:
            batches.append(rows[start:stop])
            start, tokens, more = stop, 0, targets + length
        tokens, last = tokens + more, this
    return [*batches, rows[start:]]


def why_not_varlen(model: PreTrainedModel, template: Template, encoded: Encoded) -> str | None:
    """Why rows must be read one by one and padded in this model, or None: a few of them are read in both ways.

    They are the first rows that have their prompt in common and the first ones at all.
    """
    if reason := why_not_packed(model, trained=False):
        return reason
    within = _within_window(model, encoded.lengths)
    several = np.bincount(encoded.prompt_index)[encoded.prompt_index] > 1
    rows = np.unique(np.concatenate([np.flatnonzero(some)[: COMPARED_ROWS // 2] for some in (within & several, within)]))
    if not len(rows):
        return None
    model.eval()
    try:
        padded = _read(model, template, encoded, rows)
        with attention_of(model, ATTENTION):
            flat = _read_varlen(model, template, encoded, rows)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # whatever an unknown architecture makes of it
        return f"reading it without padding fails: {first_line(error)}"
    apart = float(np.abs(padded - flat).max())
    return None if apart <= AGREEMENT[model.dtype] else f"reading it without padding differs by {apart:.1e} nats"  # NaN is no agreement


def score_flat(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray, *,
               batch_tokens: int, varlen: bool = False, progress: Any = None) -> np.ndarray:
    """b_t of distinct `rows` in ascending order as the cache stores them: flat, float32, nats, in row order.

    Args:
        varlen: as in `score_rows`.
        progress: called with the number of tokens after each batch.
    """
    targets = encoded.target_lengths[rows]
    starts = np.cumsum(targets) - targets
    flat = np.empty(targets.sum(), np.float32)
    for batch, nll in score_rows(model, template, encoded, rows, batch_tokens=batch_tokens, varlen=varlen):
        flat[slices(starts[np.searchsorted(rows, batch)], encoded.target_lengths[batch])] = nll
        if progress:
            progress(int(encoded.lengths[batch].sum()))
    return flat


def weights_hash(model: PreTrainedModel) -> str:
    """sha256 over every parameter and buffer: name, dtype, shape and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint(model: PreTrainedModel, template: Template, encoded: Encoded, *, max_length: int, precision: str,
                attention: str) -> dict[str, Any]:
    """Everything that b_t depends on; a cache is trusted only where all of it is equal.

    Causes come before what follows from them, since the first field that differs is the one that is told.
    """
    return {
        "dtype": precision, "attention": attention, "max_length": max_length, "weights": weights_hash(model),
        "tokenizer": template.tokenizer_hash(), "template": template.fingerprint(), "data": encoded.data_hash(),
    }
