"""The LM head: hidden states -> the NLL of the next tokens, without logits at positions that are
not scored.

Shapes: R rows, T tokens, S supervised tokens, N supervised tokens of all rows, H
hidden size, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from twcli.kernels.linear import is_its_weights, linear

# 128 MiB in float32: large enough for a fast matrix product, small beside the
# weights of a large vocabulary
HEAD_LOGITS = 2**25
# 2 MiB of logits in float32: they fit in a CPU core's cache until they are summed
BLOCK_TOKENS, BLOCK_WORDS = 1024, 512
# what families call the scalings around their LM heads: Falcon H1, Cohere; Granite, Inkling; Gemma,
# RecurrentGemma, xLSTM. `checks.check_model` asks each model whether these are all of its own.
MULTIPLIERS = ("lm_head_multiplier", "logit_scale")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# whose `logits_scaling` is a factor
MULTIPLIED = ("hyperclovax",)
# a transform between the last hidden states and the LM head's linear layer
TRANSFORMS = {"modernbert-decoder": "lm_head"}
# exp(x) = exp2(x LOG2_E), which takes torch little more than half the time on a CPU
LOG2_E = 1 / math.log(2)


def head_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Next-token logits (..., V) of hidden states (..., H), with the scalings that some model
    families apply after the LM head.
    """
    head = model.get_output_embeddings()
    hidden = _before_head(model, hidden)
    if torch.is_grad_enabled() and _is_a_matrix(model):
        logits = linear(hidden, head.weight, head.bias)
    else:
        logits = head(hidden)
    return scaled(model, logits)


def _before_head(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """What the LM head's linear layer gets, (..., H), from the last hidden states (..., H): some
    families transform them first.
    """
    name = TRANSFORMS.get(model.config.model_type)
    if name is None:
        return hidden
    ready: torch.Tensor = model.get_submodule(name)(hidden)
    return ready


def scaled(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """The logits (.., V) of the model from what its LM head gives."""
    config = model.config.get_text_config()
    for name in MULTIPLIERS:
        if scale := getattr(config, name, None):
            logits = logits * scale
    for name in DIVISORS:
        if scale := getattr(config, name, None):
            if config.model_type in MULTIPLIED:
                logits = logits * scale
            else:
                logits = logits / scale
    for name in CAPS:
        if cap := getattr(config, name, None):
            logits = cap * torch.tanh(logits / cap)
    return logits


def target_nll(
    model: PreTrainedModel,
    hidden_RTH: torch.Tensor,
    first_R: torch.Tensor,
    targets_RS: torch.Tensor,
    active_RS: torch.Tensor,
) -> torch.Tensor:
    """NLL (R, S) in nats, float32 (float64 from a float64 model), zero where not active; the LM
    head is applied to active positions only.

    Args:
        first_R: column that predicts the first target, i.e. that of `<y>`.
    """
    rows, columns = active_RS.nonzero(as_tuple=True)
    hidden = hidden_RTH[rows, first_R[rows] + columns]
    nll = token_nll(model, hidden, targets_RS[rows, columns])
    zeros_RS = nll.new_zeros(active_RS.shape)
    return zeros_RS.index_put((rows, columns), nll)


def token_nll(
    model: PreTrainedModel, hidden_NH: torch.Tensor, targets_N: torch.Tensor
) -> torch.Tensor:
    """NLL (N,) in nats, float32 or float64, of each target, given the last hidden state of the
    token before it.

    At most `HEAD_LOGITS` logits are in memory. If all targets need more, they are computed piece by
    piece, and again in the backward pass. Without a gradient, a CPU goes over the vocabulary block
    by block and stores no logits.
    """
    if not torch.is_grad_enabled() and _is_a_matrix(model):
        ready_NH = _before_head(model, hidden_NH)
        return torch.cat(
            [_nll_by_blocks(model, *piece) for piece in _pieces(BLOCK_TOKENS, ready_NH, targets_N)]
        )
    pieces = _pieces(
        max(1, HEAD_LOGITS // model.get_output_embeddings().weight.shape[0]), hidden_NH, targets_N
    )
    if len(pieces) > 1 and torch.is_grad_enabled():
        return torch.cat(
            [
                checkpoint(_nll, model, *piece, use_reentrant=False, preserve_rng_state=False)
                for piece in pieces
            ]
        )
    return torch.cat([_nll(model, *piece) for piece in pieces])


def _pieces(size: int, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """The tensors cut alike, so many rows at a time."""
    pieces = [tensor.split(size) for tensor in tensors]
    return list(zip(*pieces, strict=True))


def _nll(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """NLL (N,) in nats of targets (N,), with all logits (N, V) in memory."""
    logits = at_least_float32(head_logits(model, hidden))
    return F.cross_entropy(logits, targets, reduction="none")


def _is_a_matrix(model: PreTrainedModel) -> bool:
    """Whether the LM head is a plain linear layer on a CPU, without hooks, so that its product may
    be computed by another kernel.
    """
    head = model.get_output_embeddings()
    return is_its_weights(head) and not head._forward_hooks and not head._forward_pre_hooks


def _nll_by_blocks(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """NLL (N,) in nats of targets (N,), a block of the vocabulary at a time."""
    head = model.get_output_embeddings()
    log_sums = []
    of_target = torch.empty(0)
    for first in range(0, len(head.weight), BLOCK_WORDS):
        words = slice(first, first + BLOCK_WORDS)
        if head.bias is None:
            bias = None
        else:
            bias = head.bias[words]
        logits = scaled(model, linear(hidden, head.weight[words], bias))
        block = at_least_float32(logits)
        inside = targets - first
        found = block.gather(1, inside.clamp(0, block.shape[1] - 1)[:, None])[:, 0]
        if first:
            of_target = torch.where(inside >= 0, found, of_target)
        else:
            of_target = found
        log_sums.append(_logsumexp_in_place(block))
    return torch.logsumexp(torch.stack(log_sums), dim=0) - of_target


def _logsumexp_in_place(block: torch.Tensor) -> torch.Tensor:
    """torch.logsumexp (N,) of (N, V) in half the time, since it makes no copies; destroys the
    block.
    """
    # if all values are -inf, the result is -inf and not NaN
    largest = block.amax(-1).clamp(min=torch.finfo(block.dtype).min)
    exponentials = block.sub_(largest[:, None]).mul_(LOG2_E).exp2_()
    return exponentials.sum(-1).log_().add_(largest)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor (..) in the precision of losses: float32, or float64 if the model is. In bf16 a
    sum of b_t would be off by 0.03 nats.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
