"""A causal language model without its LM head, and what its layers give.

Shapes: R rows, T tokens, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def body_of(model: Any) -> nn.Module:
    """The module that gives the last hidden states; a model without an LM head is its own.

    Some families name a `base_model_prefix` that they do not have, and `base_model` is then the
    whole model (Llama 4's text model): theirs is the child that holds the embeddings.
    """
    base = model.base_model
    if base is not model or model.get_output_embeddings() is None:
        return base
    embeddings = model.get_input_embeddings()
    for child in model.children():
        if any(module is embeddings for module in child.modules()):
            return child
    return model


def one_stream(states: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A layer's states in the shape (R, T, H) of the last ones.

    Some families carry several streams between their layers, along an axis of their own: the first
    one in Gemma 3n (alternating updates). Their mean is taken.
    """
    if states.ndim == len(shape):
        return states
    for axis in range(states.ndim - 1):
        if states.shape[:axis] + states.shape[axis + 1 :] == shape:
            return states.mean(axis)
    return states
