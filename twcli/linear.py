"""Linear layers on a CPU without a gradient, by oneDNN.

torch hands products in float32 to MKL, which uses less of a processor that is not of its maker than oneDNN does. oneDNN comes with torch
as well, which takes it for other precisions only. With a gradient layers stay as they are.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import nn

X86 = ("x86_64", "AMD64")
TOLERANCE = 1e-5


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(.., O) from (.., I), (O, I) and (O,): what `F.linear` gives but for rounding."""
    if (torch.is_grad_enabled() or not x.numel() or any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (x, weight))
            or torch.is_autocast_enabled("cpu") or not _usable()):
        return F.linear(x, weight, bias)
    return _by_onednn(x, weight, bias)


@contextmanager
def fast_linear(model: nn.Module) -> Iterator[None]:
    """While it lasts, layers of `model` that are weights on a CPU and nothing else compute by `linear`; a compiled model's do not."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    layers = [] if compiled else [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(module: nn.Module) -> bool:
    """A linear layer with whole weights, whose pass nobody has replaced, another `fast_linear` included."""
    return (type(module) is nn.Linear and type(module.weight) is nn.Parameter and module.weight.device.type == "cpu"
            and "forward" not in vars(module))


def _forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, layer.weight, layer.bias)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _usable() -> bool:
    """Whether this torch has oneDNN's product, which is no part of its public face, and it is one."""
    if platform.machine() not in X86 or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = (torch.arange(float(n)).cos() for n in (6, 12, 4))
    x, weight = x.view(1, 2, 3), weight.view(4, 3)
    try:
        return torch.allclose(_by_onednn(x, weight, bias), F.linear(x, weight, bias), atol=TOLERANCE)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # whatever another version makes of it
        return False
