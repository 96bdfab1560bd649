"""What a run resumes from, as plain tensors by name, and back: weights, optimiser, latents found.

Random numbers are not among it: `trainer.py` draws those of each batch from a seed of its own. By
hand, since `torch.distributed.checkpoint.state_dict` names an optimiser's state otherwise, and runs
that earlier versions began could not be resumed.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
import torch

from twcli.models.sharding import like, whole
from twcli.training.average import WeightAverage


def snapshot(
    model: torch.nn.Module,
    optimizer: Any,
    latent_N: np.ndarray,
    average: WeightAverage,
    *,
    keep: bool,
) -> dict[str, torch.Tensor]:
    """All that a run resumes from.

    Args:
        latent_N: (N,) the latent at which each row's posterior is held, -1 for none.
        keep: off in processes that only give their parts to the one that keeps.

    Returns:
        Tensors of any shape (..) by name; none where `keep` is off.
    """
    named = [(f"model.{name}", tensor) for name, tensor in _changing(model).items()]
    for number, state in optimizer.state_dict()["state"].items():
        named += [(f"optimizer.{number}.{name}", value) for name, value in state.items()]
    named += [(f"average.{name}", tensor) for name, tensor in average.tensors.items()]
    tensors = {}
    # the same order in all processes, whatever it was in a file
    for name, tensor in sorted(named, key=itemgetter(0)):
        full = whole(tensor)
        if keep:
            tensors[name] = full.clone()  # tied weights must not share their memory in the file
    if keep:
        tensors["latents"] = torch.from_numpy(latent_N.copy())
    return tensors


def restore(
    model: torch.nn.Module,
    optimizer: Any,
    latent_N: np.ndarray,
    average: WeightAverage,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Puts back what `snapshot` took, into the model, the optimiser, `latent_N` and the average.

    Args:
        latent_N: (N,) is overwritten.
        tensors: by name, each of the shape it was taken with.
    """
    latent_N[:] = tensors["latents"].numpy()
    model.load_state_dict(
        {name: like(tensors[f"model.{name}"], tensor) for name, tensor in _changing(model).items()},
        strict=False,
    )
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            # the other entry is the number of steps
            moment = value.shape == trained[int(number)].shape
            if moment:
                state.setdefault(int(number), {})[name] = like(value, trained[int(number)])
            else:
                state.setdefault(int(number), {})[name] = value
    for name, tensor in average.tensors.items():
        tensor.copy_(like(tensors[f"average.{name}"], tensor))
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _changing(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers by name, detached, without weights that training leaves alone: those are
    in the checkpoint it began from.
    """
    changing = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        weight = isinstance(tensor, torch.nn.Parameter)
        if tensor.requires_grad or not weight:
            changing[name] = tensor.detach()
    return changing
