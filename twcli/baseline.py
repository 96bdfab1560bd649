"""The frozen model's per-token NLL b_t of y: the whole of `twcli precompute`'s arithmetic.

Shapes: R rows, T tokens, S supervised tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from twcli.template import Encoded, Template

CACHED_VALUES = 3 * 2**18  # 3 MiB in float32: what one layer hands to the next stays in a CPU core's cache
LEAST_TOKENS, DEVICE_TOKENS = 256, 16384
HEAD_LOGITS = 2**25  # 128 MiB in float32: large enough for a fast matrix product, small beside the weights of a large vocabulary


def hidden_states(model: PreTrainedModel, input_ids_RT: torch.Tensor, *, all_layers: bool = False) -> Any:
    """Last hidden states (R, T, H), or with `all_layers` the tuple of every layer's, embeddings first.

    Rows are padded on the right, where a causal model's real tokens never look, so no mask is needed and
    the attention backend takes its fast causal path.
    """
    output = model.base_model(input_ids=input_ids_RT, use_cache=False, output_hidden_states=all_layers)
    return output.hidden_states if all_layers else output.last_hidden_state


def head_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Next-token logits (..., V) of hidden states (..., H), with the scalings some families put behind the head."""
    logits = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = cap * torch.tanh(logits / cap)
    return logits


def target_nll(model: PreTrainedModel, hidden_RTH: torch.Tensor, first_R: torch.Tensor, targets_RS: torch.Tensor,
               active_RS: torch.Tensor) -> torch.Tensor:
    """NLL (R, S) in nats, float32 (float64 from a float64 model), zero where not active.

    The head sees the active positions only, and so many at a time that their logits stay below `HEAD_LOGITS` values. Where
    they do not fit at once and a gradient is wanted, the backward pass computes each piece's logits again.

    Args:
        first_R: column that predicts the first target, i.e. that of `<y>`.
    """
    rows, columns = active_RS.nonzero(as_tuple=True)
    hidden = hidden_RTH[rows, first_R[rows] + columns]
    pieces = list(zip(*(t.split(max(1, HEAD_LOGITS // model.get_output_embeddings().weight.shape[0]))
                        for t in (hidden, targets_RS[rows, columns])), strict=True))
    if len(pieces) > 1 and torch.is_grad_enabled():
        nll = torch.cat([checkpoint(_nll, model, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])
    else:
        nll = torch.cat([_nll(model, *piece) for piece in pieces])
    return nll.new_zeros(active_RS.shape).index_put((rows, columns), nll)


def _nll(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(at_least_float32(head_logits(model, hidden)), targets, reduction="none")


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Losses are taken in float32, or in float64 where the model has it; never in bf16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gather_padded(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, fill: int | float) -> np.ndarray:
    """(R, longest) array of the slices `flat[start : start + length]`, padded on the right with `fill`."""
    columns = np.arange(lengths.max(initial=0))
    inside = columns < lengths[:, None]
    return np.where(inside, flat[np.minimum(starts[:, None] + columns, len(flat) - 1)], fill)


def budget_batches(lengths: np.ndarray, order: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cuts `order` into batches of at most `batch_tokens` padded tokens, at least one row each."""
    batches, start, longest = [], 0, 0
    for stop, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        if stop > start and longest * (stop - start + 1) > batch_tokens:
            batches.append(order[start:stop])
            start, longest = stop, length
    if start < len(order):
        batches.append(order[start:])
    return batches


def linear_weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """The matrices that every token is multiplied with below the head: no embedding tables."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return [w for w in model.base_model.parameters() if w.dim() == 2 and id(w) not in tables]


def fast_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens a batch that the model reads fastest without a gradient.

    On a CPU more of them make every layer's output leave the cache, fewer make its matrix products slow; other devices want many.
    """
    if model.device.type != "cpu":
        return DEVICE_TOKENS
    widest = max(max(w.shape) for w in linear_weights(model))
    return max(LEAST_TOKENS, CACHED_VALUES // widest)


@torch.no_grad()
def score_rows(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray, *,
               batch_tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """b_t of `rows`, longest first so that the largest batch is met at once.

    Yields:
        (rows of the batch (R,), their NLL padded (R, S) float32 nats, their S (R,)).
    """
    model.eval()
    device = model.device
    order = rows[np.argsort(-encoded.lengths[rows], kind="stable")]
    for batch in budget_batches(encoded.lengths, order, batch_tokens):
        starts, lengths = encoded.offsets[batch], encoded.lengths[batch]
        prompts, targets = encoded.prompt_lengths[batch], encoded.target_lengths[batch]
        input_ids = torch.from_numpy(gather_padded(encoded.ids, starts, lengths, template.pad).astype(np.int64))
        target_ids = gather_padded(encoded.ids, starts + prompts + 1, targets, template.pad).astype(np.int64)
        active = torch.from_numpy(np.arange(target_ids.shape[1]) < targets[:, None])
        hidden = hidden_states(model, input_ids.to(device))
        nll = target_nll(model, hidden, torch.from_numpy(prompts).to(device),
                         torch.from_numpy(target_ids).to(device), active.to(device))
        yield batch, nll.cpu().numpy(), targets


def score_flat(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray, *,
               batch_tokens: int, progress: Any = None) -> np.ndarray:
    """b_t of consecutive `rows` as the cache stores them: flat, float32, nats, in row order.

    Args:
        progress: called with the number of tokens after each batch.
    """
    offsets = np.concatenate([[0], np.cumsum(encoded.target_lengths[rows])])
    flat = np.empty(offsets[-1], np.float32)
    for batch, nll_RS, targets in score_rows(model, template, encoded, rows, batch_tokens=batch_tokens):
        inside = np.arange(nll_RS.shape[1]) < targets[:, None]
        starts = offsets[np.searchsorted(rows, batch)]
        flat[(starts[:, None] + np.arange(nll_RS.shape[1]))[inside]] = nll_RS[inside]
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
