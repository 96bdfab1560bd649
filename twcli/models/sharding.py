"""FSDP2 by torch: weights, gradients and optimiser state are sharded over the processes of a job
and gathered for use.

A sharded tensor is a `DTensor`; `whole` and `like` convert between it and a plain tensor. All
processes must call them together.
"""

from __future__ import annotations

import warnings

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from twcli.models.latents import LatentModel


def shard(model: LatentModel, processes: int) -> None:
    """Shards the model in place: each transformer block separately, the rest together."""
    # FSDP2 warns about in-place changes of a forward pass's outputs; we make none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    mesh = init_device_mesh(model.latent_ids_KP.device.type, (processes,))
    blocks = set(model.backbone._no_split_modules or ())
    for module in [m for m in model.modules() if type(m).__name__ in blocks]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "score_branches")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The plain tensor, of the same shape (..), gathered from all processes if it is sharded."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A plain tensor, which every process has, sharded as another one is.

    Args:
        tensor, other: (..) of one shape.

    Returns:
        (..) the same values; `tensor` itself where `other` is not sharded.
    """
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )
