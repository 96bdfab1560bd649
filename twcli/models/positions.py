"""Rotary position embeddings whose frequencies depend on the longest row of a forward pass: which
lengths may share a pass, and a pass that does not depend on those before it.

The rule is that of transformers' `dynamic_rope_update` (modeling_rope_utils): "longrope" takes its
long factors beyond the length of the original training (Ding et al. 2024), "dynamic" NTK has other
frequencies for every length beyond it, and keeps those of the longest pass so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from twcli.data.padding import PassLengths

LONGROPE, DYNAMIC = "longrope", "dynamic"


def pass_lengths(model: nn.Module) -> PassLengths:
    """Which lengths may share a forward pass of the model."""
    boundaries = set()
    beyond = set()
    for module, layer_type, kind in _rotary(model):
        if kind == LONGROPE:
            parameters = module.config.rope_parameters
            parameters = parameters if layer_type is None else parameters[layer_type]
            boundaries.add(int(parameters["original_max_position_embeddings"]))
        elif DYNAMIC in kind:
            beyond.add(int(module.original_max_seq_len))
    return PassLengths(tuple(sorted(boundaries)), min(beyond, default=None))


def forget_earlier_passes(model: PreTrainedModel) -> None:
    """Makes a forward pass with "dynamic" frequencies depend on its own length alone, as the first
    pass of a model that has just been loaded does.
    """
    modules = {module for module, _, kind in _rotary(model) if DYNAMIC in kind}
    for module in modules:
        module.register_forward_pre_hook(_as_loaded)


def stretched_context(model: PreTrainedModel, limit: int) -> int:
    """The context in tokens, where `limit` is the one of the training: "dynamic" frequencies are
    for rows that are longer by their factor.
    """
    largest = 1.0
    for module, layer_type, kind in _rotary(model):
        if DYNAMIC not in kind:
            continue
        parameters = module.config.rope_parameters
        if layer_type is not None:
            parameters = parameters[layer_type]
        factor = float(parameters.get("factor", 1.0))
        largest = max(largest, factor)
    return int(limit * largest)


def _rotary(model: nn.Module) -> Iterator[tuple[Any, str | None, str]]:
    """(module, layer type where it has several, rope type) of each rotary embedding."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            yield module, None, kinds
        elif isinstance(kinds, dict):
            yield from ((module, layer_type, str(kind)) for layer_type, kind in kinds.items())


def _as_loaded(module: Any, _inputs: Any) -> None:
    """Before a pass: rotary frequencies as loaded, since a long sequence may have changed them."""
    for name in [n for n, _ in module.named_buffers(recurse=False) if n.endswith("inv_freq")]:
        original = getattr(module, _original(name), None)
        if original is not None:
            current = getattr(module, name)
            module.register_buffer(name, original.to(current.device), persistent=False)
    for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)


def _original(name: str) -> str:
    """Name of the frequencies that a module keeps beside `inv_freq` or `<layer type>_inv_freq`."""
    return f"{name.removesuffix('inv_freq')}original_inv_freq"
