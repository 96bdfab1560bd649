"""Linear layers on a CPU by oneDNN.

torch computes float32 products with MKL, which is slower than oneDNN on processors other than
Intel's: there it takes half of what AVX-512 can do. oneDNN comes with torch, but torch uses it for
other precisions only. In bf16 torch takes it too, but reorders the weights in every call, which
processors whose products are as fast as AMX's notice: here they are reordered once.

With a gradient, oneDNN computes the product and both of its gradients on those processors only: on
others it gains nothing. What decides is the processor and never a measurement, so that a run that
is resumed repeats its bits.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

PROCESSORS = Path("/proc/cpuinfo")
X86 = ("x86_64", "AMD64")
ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # that rounding explains
MOST_PACKED = 2**28  # weights, 1 GiB of them; a larger copy may not fit in memory


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Equal to `F.linear` up to rounding.

    Args:
        x: (.., I).
        weight: (O, I).
        bias: (O,).
        packed: the weight in oneDNN's memory order, if it was reordered before.

    Returns:
        (.., O).
    """
    if (
        not x.numel()
        or x.dtype != weight.dtype
        or (x.dtype != torch.float32 and packed is None)
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or not _usable(x.dtype)
    ):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        if x.dtype == torch.float32 and _half_used():
            return _Product.apply(x, weight, bias)
        return F.linear(x, weight, bias)
    return _by_onednn(x, weight if packed is None else packed, bias)


class _Product(torch.autograd.Function):
    """`F.linear`, whose gradients are oneDNN's too."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """x (.., I) times the weight (O, I): (.., O)."""
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()  # that of a sum has no memory of its own
        rows = gradient.flatten(0, -2)
        gradient_x = gradient_weight = gradient_bias = None
        if of_x:
            gradient_x = _by_onednn(gradient, weight.t(), None)
        if of_weight:
            inputs = x.flatten(0, -2)
            gradient_weight = _by_onednn(rows.t(), inputs.t(), None)
        if of_bias:
            gradient_bias = rows.sum(0)
        return gradient_x, gradient_weight, gradient_bias


@contextmanager
def fast_linear(model: nn.Module, *, pack: bool = False) -> Iterator[None]:
    """Within it, the plain linear layers of `model` on a CPU are computed by `linear`. A compiled
    model is unchanged, and so is one that computes its activations again in the backward pass,
    which comes after this.

    Args:
        pack: copy the weights once into oneDNN's memory order, unless there are too many; otherwise
            every call does so. For many calls with unchanged weights, without a gradient.
    """
    unchanged = any(module._compiled_call_impl is not None for module in model.modules())
    if torch.is_grad_enabled():
        unchanged = unchanged or any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        )
    # A layer whose `forward` is already replaced, perhaps by an outer `fast_linear`, keeps it.
    layers: list[Any] = (
        []
        if unchanged
        else [m for m in model.modules() if is_its_weights(m) and "forward" not in vars(m)]
    )
    pack = pack and sum(layer.weight.numel() for layer in layers) <= MOST_PACKED
    for layer in layers:
        if pack and _usable(layer.weight.dtype):
            packed = _packed(layer.weight)
        else:
            packed = None
        layer.forward = partial(_forward, layer, packed)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def is_its_weights(module: nn.Module) -> bool:
    """Whether it is a plain linear layer on a CPU: no adapter, no sharded weights."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
    )


def _forward(layer: nn.Linear, packed: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """What takes the place of a linear layer's own forward pass."""
    return linear(x, layer.weight, layer.bias, packed=packed)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(.., O) from (.., I), (O, I) and (O,) by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _packed(weight: torch.Tensor) -> torch.Tensor:
    """The weight (O, I) in oneDNN's memory order, which spares it the copy in each product."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


@cache
def _half_used() -> bool:
    """Whether torch's own products take half of what this processor can do: MKL uses AVX-512 on
    Intel's only.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not PROCESSORS.exists():
        return False
    return "GenuineIntel" not in PROCESSORS.read_text()


@cache
def _usable(dtype: torch.dtype) -> bool:
    """Whether oneDNN's product, which is not public API, exists and is correct here in this
    precision; in bf16 also whether the processor has products for it.
    """
    if platform.machine() not in X86 or not torch.backends.mkldnn.is_available():
        return False
    if dtype not in ERRORS:
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    x, weight, bias = (torch.arange(float(n)).cos().to(dtype) for n in (6, 12, 4))
    x = x.view(1, 2, 3)
    weight = weight.view(4, 3)
    try:
        return all(
            torch.allclose(_by_onednn(x, w, bias), F.linear(x, weight, bias), atol=ERRORS[dtype])
            for w in (weight, _packed(weight))
        )
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        # other torch versions may fail in any way
        return False
