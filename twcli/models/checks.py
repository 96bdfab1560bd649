"""What twcli assumes of a model, asked of the model itself on two tiny batches before anything is
written: finite, causal, each row independent of the rows beside it, logits from the LM head alone.

Shapes: R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from twcli.data.padding import PassLengths
from twcli.errors import UserError, first_line
from twcli.kernels.body import body_of
from twcli.kernels.head import at_least_float32, head_logits, scaled
from twcli.models.positions import pass_lengths

PROBE_TOKENS, PROBE_PADS = 8, 4
SHARE = {torch.float32: 1e-3, torch.float64: 1e-9}  # of the logits' norm; rounding is far smaller
LARGEST_LOGIT = 100.0  # up to which the scaling of logits is asked for
# bf16 and fp16: rounding; between passes of different shapes also another expert of a mixture
HALF_SHARE, HALF_SHARE_OF_SHAPES = 0.03, 0.3


@torch.no_grad()
def check_model(model: PreTrainedModel, source: str) -> None:
    """Raises UserError with one line if an assumption fails; the model is in eval mode.

    Four forward passes of 1 to 36 tokens, and one reading of all weights.
    """
    check_finite(model, source)
    kind = model.config.model_type
    try:
        alone, scored, beside = _probe(model, pass_lengths(model))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an unknown architecture may fail in any way
        raise UserError(
            f"{source}: a {kind} model cannot be run on rows of text: {first_line(error)}; "
            "--model takes a decoder of text, a causal language model"
        ) from error
    if not bool(alone.isfinite().all()):
        raise UserError(
            f"{source}: its weights are finite and its logits are not; take --precision fp32, or "
            "another checkpoint"
        )
    if not bool(alone.std() > 0):
        raise UserError(
            f"{source}: its logits are all equal, as if its weights were zero; the checkpoint is "
            "damaged: copy it again"
        )
    same = SHARE.get(model.dtype, HALF_SHARE)
    shapes = SHARE.get(model.dtype, HALF_SHARE_OF_SHAPES)
    with_pads, changed_later = beside
    if not _difference(changed_later[:-1], with_pads[:-1]) <= shapes:
        raise UserError(
            f"{source}: a {kind} model is not causal here: a token changes the logits before it; "
            "take a causal language model (of an encoder, one with is_decoder in config.json)"
        )
    if not _difference(with_pads, alone) <= shapes:
        raise UserError(
            f"{source}: the logits of a {kind} model depend on the other rows of its batch "
            "and on padding, and so would b_t; take another model, and report this one's name"
        )
    wrong = scored.shape != alone.shape or not _difference(scored, alone) <= same
    if wrong or not _scaling_difference(model) <= same:
        raise UserError(
            f"{source}: a {kind} model computes its logits from its last hidden states in a way "
            "that twcli does not support; take another model, and report this one's name"
        )


def check_finite(model: PreTrainedModel, source: str) -> None:
    """Raises UserError that names the first tensor with a value that is NaN or infinite."""
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or not weight.numel():
            continue
        # without a copy of the tensor: NaN is both its own least and largest value
        if all(bool(bound.isfinite()) for bound in torch.aminmax(weight)):
            continue
        wrong = (~weight.isfinite()).nonzero()
        first = ", ".join(str(place) for place in wrong[0].tolist())
        raise UserError(
            f"{source}: the weights {name} hold {len(wrong):,} values that are not finite, the "
            f"first at [{first}]; the checkpoint is damaged: copy it again, or take an earlier one"
        )


def _probe(
    model: PreTrainedModel, lengths: PassLengths
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Logits (T, V) of a row alone: the model's own; from its last hidden states by the head; and,
    in a padded batch, of the row and of the same row with another last token. Where the padded
    batch may not share a pass with the row, it has no padding.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        limit = PROBE_TOKENS + PROBE_PADS
    T = min(PROBE_TOKENS, limit)
    longest = min(PROBE_TOKENS + PROBE_PADS, limit)
    rows = model.get_input_embeddings().num_embeddings
    # apart from each other and from the special tokens, which are often the first ids
    ids_T = (3 + 7 * torch.arange(longest, device=model.device)) % rows
    row_1T = ids_T[None, :T]
    alone = model(input_ids=row_1T, use_cache=False).logits[0]
    scored = head_logits(model, _last_states(model, row_1T))[0]
    short, padded_long = lengths.classes(np.array([T, longest])).tolist()
    ids_T = ids_T if short == padded_long else ids_T[:T]
    padded = ids_T.clone()
    padded[T:] = 0
    changed = padded.clone()
    changed[T - 1] = (changed[T - 1] + 1) % rows
    batch = torch.stack([padded, changed, ids_T.flip(0)])
    logits = model(input_ids=batch, use_cache=False).logits
    return alone, scored, (logits[0, :T], logits[1, :T])


def _scaling_difference(model: PreTrainedModel) -> float:
    """As `_difference`, of what the model and `head.scaled` make of the same values of the LM head,
    but for a factor: some families apply theirs before the head.

    Values of up to `LARGEST_LOGIT`: a soft cap hardly changes the small logits of a probe. 0 where
    the head is not called as a module.
    """
    head = model.get_output_embeddings()
    given = []

    def replace(_head: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        words = output.shape[-1]
        values = torch.linspace(-LARGEST_LOGIT, LARGEST_LOGIT, words)
        logits = values.to(output).expand_as(output)
        given.append(logits)
        return logits

    hook = head.register_forward_hook(replace)
    try:
        ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    if not given:
        return 0.0
    expected = scaled(model, given[-1])
    product = (expected * logits).sum()
    factor = product / expected.square().sum()
    return _difference(expected * factor, logits)


def _last_states(model: PreTrainedModel, ids_RT: torch.Tensor) -> Any:
    """Last hidden states (R, T, H) of ids (R, T), those that the LM head gets."""
    return body_of(model)(input_ids=ids_RT, use_cache=False).last_hidden_state


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Norm of the difference as a share of `other`'s; a comparison with NaN is False."""
    one = at_least_float32(one)
    other = at_least_float32(other)
    return float((one - other).norm() / other.norm())
