"""Rotary position embeddings: positions between which a latent section grows, and frequencies that
depend on the longest row of a forward pass: which lengths may share a pass, and a pass that does
not depend on those before it.

The rule is that of transformers' `dynamic_rope_update` (modeling_rope_utils): "longrope" takes its
long factors beyond the length of the original training (Ding et al. 2024), "dynamic" NTK has other
frequencies for every length beyond it, and keeps those of the longest pass so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
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


def may_be_fractions(model: nn.Module) -> bool:
    """Whether positions need not be whole numbers: rotary ones are angles (Su et al. 2021,
    RoFormer), learned ones are rows of a table. Not where frequencies depend on the pass.
    """
    return any(_rotary(model)) and not pass_lengths(model)


def section_positions(start_B: torch.Tensor, tokens: int, width: float, count: int) -> torch.Tensor:
    """Positions (B, count) of rows in which a section of some tokens takes up `width` of the places
    that it has: 1 is the usual 0, 1, 2 and so on, at 0 what follows is where it would be without
    the section.

    Args:
        start_B: column of the section's first token.
        tokens: of the section.
        width: from 0 to 1.
    """
    columns = torch.arange(count, device=start_B.device)
    passed_BL = (columns - start_B[:, None] + 1).clamp(0, tokens)
    return columns - (1 - width) * passed_BL


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
