"""After the last step: the run is scored without labels, and saved as a model that plain
transformers loads. Shapes: N rows of the probe, K latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedModel

from twcli.discovery.score import run_score
from twcli.models import runtime
from twcli.models.card import model_card
from twcli.models.sharding import whole
from twcli.training.held_out import read_branches, retained
from twcli.training.retention import Retention, judged_by_probe, lost_latents, retention
from twcli.training.setup import Setup
from twcli.training.trainer import held_out_nll


@dataclass(frozen=True)
class Judged:
    """What a finished run is by the records of its own data, without a label.

    Attributes:
        score: the `score` of `twcli eval`: the alignment to expect, from 0 to 1. None where no
            prompts have several completions.
        at_most: the same if what all latents lack of the frozen model's likelihood is no loss but
            that model's memory of the records.
        retained: what became of each latent's completions.
        lost: latents below the frozen model by more than all are.
        records: that the score is of.
    """

    score: float | None = None
    at_most: float | None = None
    retained: Sequence[Retention] = ()
    lost: frozenset[int] = frozenset()
    records: int = 0


def judge(setup: Setup, progress: Callable[[str, int], Any]) -> Judged:
    """Reads the probe's and the held-out records under all latents; by all processes alike."""
    if setup.probe is None or setup.frozen_nll_N is None:
        return Judged()
    rows = setup.probe.rows
    latents = setup.model.latents
    with progress("score", len(rows)) as advance:
        soft_NK, generator_NK, marginal_N = read_branches(
            setup.model,
            setup.encoder,
            setup.encoded,
            rows,
            setup.config,
            setup.accelerator,
            setup.classes,
            advance,
        )
    scored = retention(soft_NK.argmax(1), setup.frozen_nll_N, marginal_N, generator_NK)
    if len(setup.held.rows_H):
        found = retained(setup.held, held_out_nll(setup, setup.held))
    else:
        # Without a naming the generator itself says which latent a completion has.
        named_N = setup.latent_N[rows]
        if (named_N >= 0).any():
            latent_N = named_N
        else:
            latent_N = soft_NK.argmax(1)
        found = retention(latent_N, setup.frozen_nll_N, marginal_N, generator_NK)
    found, scored = broadcast_object_list([found, scored])
    lost = lost_latents(found) | lost_latents(scored)
    judged = partial(
        judged_by_probe,
        setup.probe,
        soft_NK,
        generator_NK,
        setup.frozen_nll_N,
        marginal_N,
        setup.config.seed,
        scored,
    )
    score = run_score(judged(), latents)
    at_most = None
    if score is not None and any(entry.below for entry in chain(found, scored)):
        at_most = run_score(judged(kept=frozenset(range(latents)) - lost), latents)
    return Judged(score, at_most, found, lost, len(rows))


def _in_stored_dtype(
    backbone: PreTrainedModel, weights: dict[str, torch.Tensor] | None, dtype: torch.dtype
) -> dict[str, torch.Tensor] | None:
    """Rounds the weights, in place or those gathered from all processes, to the dtype of the
    checkpoint that the run started from; not to float16 where a value would become infinite.
    """
    if weights is None:
        tensors = list(backbone.parameters())
    else:
        tensors = list(weights.values())
    largest = torch.finfo(dtype).max
    if any(t.is_floating_point() and bool((t.abs() > largest).any()) for t in tensors):
        return weights
    if weights is None:
        for parameter in tensors:
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        return None
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}


def export(setup: Setup) -> None:
    """Publishes the posterior's modules and, last, `model/` that plain transformers
    loads and generates from.
    """
    model = setup.model
    # by all processes, where they hold parts
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    if not setup.accelerator.is_main_process:
        return
    weights = None
    if isinstance(model, FSDPModule):
        weights = {
            name.removeprefix("backbone."): tensor
            for name, tensor in state.items()
            if name.startswith("backbone.")
        }
    if setup.adapter is not None:
        setup.run.save_adapter(setup.adapter)
        setup.adapter.merge_and_unload()
    setup.run.save_posterior(
        {k: v for k, v in state.items() if not k.startswith("backbone.")}
        or {"exact": torch.zeros(1)}
    )
    model.backbone.generation_config = GenerationConfig(
        bos_token_id=setup.encoder.bos,
        eos_token_id=setup.encoder.ends,
        pad_token_id=setup.encoder.pad,
    )
    weights = _in_stored_dtype(model.backbone, weights, setup.stored_dtype)
    with setup.run.publishing_model() as folder:
        model.backbone.save_pretrained(folder, safe_serialization=True, state_dict=weights)
        setup.encoder.save(folder, model.latents)
        (folder / "README.md").write_text(
            model_card(setup.config, setup.encoder, runtime.versions(), setup.steps),
            encoding="utf-8",
        )
