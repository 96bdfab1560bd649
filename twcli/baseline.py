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

from twcli.errors import first_line
from twcli.packing import BRANCHES, PLAIN, TREE, Costs, Packed, linear_weights, packed_hidden_states, why_not_packed
from twcli.template import Encoded, Template

CACHED_VALUES = 3 * 2**18  # 3 MiB in float32: what one layer hands to the next stays in a CPU core's cache
LEAST_TOKENS, DEVICE_TOKENS = 256, 16384
COMPARED_ROWS = 8
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-9, torch.bfloat16: 0.5}  # nats; rounding is far below, another result far above
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


def fast_batch_tokens(model: PreTrainedModel) -> int:
    """Tokens a batch that the model reads fastest without a gradient.

    On a CPU more of them make every layer's output leave the cache, fewer make its matrix products slow; other devices want many.
    """
    if model.device.type != "cpu":
        return DEVICE_TOKENS
    widest = max(max(w.shape) for w in linear_weights(model))
    return max(LEAST_TOKENS, CACHED_VALUES // widest)


@torch.no_grad()
def score_rows(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray, *, batch_tokens: int,
               share_prompts: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """b_t of `rows`, longest first so that the largest batch is met at once.

    Args:
        share_prompts: whether completions of one prompt may be read in one pass that reads the prompt once, where that costs
            less; only where `why_not_shared` has nothing against it.

    Yields:
        (rows of the batch (R,), their NLL padded (R, S) float32 nats, their S (R,)).
    """
    model.eval()
    for batch, execution in _plan(model, encoded, rows, batch_tokens) if share_prompts else _plain_plan(encoded, rows, batch_tokens):
        yield batch, _read(model, template, encoded, batch, execution).cpu().numpy(), encoded.target_lengths[batch]


def _read(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray, execution: str) -> torch.Tensor:
    """NLL (R, S) in nats."""
    device = model.device
    starts, prompts, targets = encoded.offsets[rows], encoded.prompt_lengths[rows], encoded.target_lengths[rows]

    def padded(first: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(gather_padded(encoded.ids, first, lengths, template.pad).astype(np.int64)).to(device)

    active = (torch.arange(int(targets.max())) < torch.from_numpy(targets)[:, None]).to(device)
    target_ids = padded(starts + prompts + 1, targets)
    if execution == PLAIN:
        hidden, first = hidden_states(model, padded(starts, prompts + targets)), torch.from_numpy(prompts).to(device)
    else:
        _, leaders, prompt = np.unique(encoded.prompt_index[rows], return_index=True, return_inverse=True)
        packed = Packed(padded(starts[leaders], prompts[leaders]), torch.from_numpy(prompts[leaders]).to(device),
                        torch.from_numpy(prompt).to(device), padded(starts + prompts, targets)[:, None], execution)
        hidden, first = packed_hidden_states(model, packed)[:, 0], torch.zeros(len(rows), dtype=torch.int64, device=device)
    return target_nll(model, hidden, first, target_ids, active)


Executions = list[tuple[np.ndarray, str]]  # the rows of each batch and how they are read


def _plain_plan(encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> Executions:
    # What follows the token that predicts the last target need not be read.
    lengths = encoded.prompt_lengths[rows] + encoded.target_lengths[rows]
    order = np.argsort(-lengths, kind="stable")
    return [(rows[places], PLAIN) for places in budget_batches(lengths, order, batch_tokens)]


def _plan(model: PreTrainedModel, encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> Executions:
    """Rows by length alone, or prompt by prompt, which pads more and reads less: whichever costs less in all."""
    plain = _plain_plan(encoded, rows, batch_tokens)
    if len(np.unique(encoded.prompt_index[rows])) == len(rows):
        return plain
    costs = Costs.of(model)
    shared, shared_cost = [], 0.0
    for batch in _by_prompt(encoded, rows, batch_tokens):
        prompts = encoded.prompt_lengths[batch]
        shape = (len(np.unique(encoded.prompt_index[batch])), int(prompts.max())), (len(batch), 1, int(encoded.target_lengths[batch].max()))
        cost, execution = min((cost, name) for name, cost in costs(*shape).items() if name != TREE)
        shared.append((batch, execution))
        shared_cost += cost
    plain_cost = 0.0
    for batch, _ in plain:
        longest = int((encoded.prompt_lengths[batch] + encoded.target_lengths[batch]).max())
        plain_cost += costs((len(batch), 0), (len(batch), 1, longest))[PLAIN]
    return shared if shared_cost < plain_cost else plain


def _by_prompt(encoded: Encoded, rows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Batches of at most `batch_tokens` padded tokens, at least one row each, in which a prompt counts once; longest first."""
    _, prompt = np.unique(encoded.prompt_index[rows], return_inverse=True)
    longest = np.zeros(prompt.max() + 1, np.int64)
    np.maximum.at(longest, prompt, encoded.lengths[rows])
    order = np.lexsort((-encoded.lengths[rows], prompt, -longest[prompt]))
    rows, prompt = rows[order], prompt[order]
    batches, start, last, G, P, S = [], 0, -1, 0, 0, 0
    for stop, (this, length, targets) in enumerate(zip(prompt, encoded.prompt_lengths[rows], encoded.target_lengths[rows], strict=True)):
        G, P, S = G + (this != last), max(P, length), max(S, targets)
        if stop > start and G * P + (stop - start + 1) * S > batch_tokens:
            batches.append(rows[start:stop])
            start, G, P, S = stop, 1, length, targets
        last = this
    return [*batches, rows[start:]]


@torch.no_grad()
def why_not_shared(model: PreTrainedModel, template: Template, encoded: Encoded) -> str | None:
    """Why completions of one prompt must be read one by one in this model, or None: the first few are read in both ways."""
    if reason := why_not_packed(model, trained=False):
        return reason
    several = np.flatnonzero(np.bincount(encoded.prompt_index)[encoded.prompt_index] > 1)[:COMPARED_ROWS]
    if not len(several):
        return None
    model.eval()
    try:
        plain, shared = (_read(model, template, encoded, several, execution) for execution in (PLAIN, BRANCHES))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # whatever an unknown architecture makes of it
        return f"its packed execution fails: {first_line(error)}"
    apart = float((plain - shared).abs().max())
    return None if apart <= AGREEMENT[model.dtype] else f"its packed execution differs by {apart:.1e} nats"  # NaN is no agreement


def score_flat(model: PreTrainedModel, template: Template, encoded: Encoded, rows: np.ndarray, *,
               batch_tokens: int, share_prompts: bool = False, progress: Any = None) -> np.ndarray:
    """b_t of consecutive `rows` as the cache stores them: flat, float32, nats, in row order.

    Args:
        progress: called with the number of tokens after each batch.
    """
    offsets = np.concatenate([[0], np.cumsum(encoded.target_lengths[rows])])
    flat = np.empty(offsets[-1], np.float32)
    for batch, nll_RS, targets in score_rows(model, template, encoded, rows, batch_tokens=batch_tokens, share_prompts=share_prompts):
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
