"""How much memory the activations of a training step take, measured on a few tokens of this model:
the tensors that a forward pass keeps for its backward pass.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from twcli.kernels.body import body_of

MEASURED_TOKENS = 256  # of a row, at most


def activation_bytes_a_token(
    model: PreTrainedModel, tokens: int, *, autocast: bool, checkpointing: bool
) -> float:
    """Bytes that the layers keep for each token of a row of about so many, where their weights are
    trained; the LM head, which reads the tokens of y alone, is left out.

    Args:
        autocast: whether the arithmetic is in bf16.
        checkpointing: whether a layer's input is kept alone, and one layer at a time is computed
            again.
    """
    T = max(1, min(tokens, MEASURED_TOKENS))
    one, two = (_kept(model, rows, T, autocast) for rows in (1, 2))
    kept = (two - one) / T  # without what does not grow with the rows, as weights in bf16
    if not checkpointing:
        return kept
    config = model.config.get_text_config()
    layers = max(1, config.num_hidden_layers)
    return layers * config.hidden_size * model.dtype.itemsize + kept / layers


def _kept(model: PreTrainedModel, rows: int, tokens: int, autocast: bool) -> int:
    """Bytes of the tensors that a forward pass keeps, the weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        """Counts the bytes of a tensor that autograd keeps, each storage once and weights not at
        all.
        """
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids_BT = torch.arange(tokens, device=model.device).expand(rows, tokens)
    ids_BT = ids_BT % model.get_input_embeddings().num_embeddings
    with (
        torch.enable_grad(),
        torch.autocast(model.device.type, torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        states = body_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
    del states  # until here the graph holds what is kept
    return sum(kept.values())
