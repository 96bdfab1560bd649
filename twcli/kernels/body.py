"""A causal language model without its LM head."""

from __future__ import annotations

from typing import Any

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
