"""Builds the model with K latents: from a checkpoint to train, or from a finished run."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from twcli.config.train import TrainConfig
from twcli.data.batches import Batch, collate, length_classes
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.errors import UserError, first_line
from twcli.kernels import flash
from twcli.kernels.packing import AUTO, BRANCHES, PLAIN, TREE, why_not_packed, window_of
from twcli.models import loading, runtime
from twcli.models.adapters import add_lora
from twcli.models.agreement import SHARE, why_not
from twcli.models.latents import LatentModel, LatentOutput
from twcli.models.new_rows import add_latent_rows, freeze_backbone, grow_embeddings
from twcli.models.runtime import Say
from twcli.storage.run_folder import RunFolder

CHECKED_ROWS = 4

Measured = tuple[torch.Tensor, tuple[Any, ...]]  # a loss and its gradients


def build(
    config: TrainConfig, backbone: PreTrainedModel, encoder: ExampleEncoder
) -> tuple[LatentModel, Any]:
    """Adds the latent tokens, LoRA and the posterior's modules, all initialised from the seed.
    Returns the model and, with LoRA, the adapter (`Setup.adapter`).
    """
    loading.fit_vocabulary(backbone, encoder, section=True)
    latents = config.resolved_latents
    encoder.add_latents(latents)
    ids = encoder.latent_ids(latents)
    add_latent_rows(backbone, ids, torch.Generator().manual_seed(config.seed))
    new_ids = [
        *(token for latent in ids for token in latent),
        encoder.z_open,
        encoder.z_close,
        *encoder.added_ids,
    ]
    adapter = None
    if config.adapt == "lora":
        adapter = add_lora(
            backbone,
            sorted(set(new_ids)),
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            targets=config.lora_targets,
            seed=config.seed,
        )
    torch.manual_seed(config.seed)
    model = LatentModel(
        backbone,
        ids,
        config.posterior,
        dynamic_baseline=config.baseline_policy == "dynamic",
        latent_chunk=config.latent_chunk,
    )
    if config.adapt == "frozen":
        freeze_backbone(backbone, new_ids)
    return model.to(backbone.device), adapter


def execution_of(config: TrainConfig) -> str:
    """The execution to request: `--execution`, unless another option rules it out."""
    if config.gradient_checkpointing or config.compile:
        # recomputed activations and compiled graphs would need the mask and positions of a packed
        # pass
        return PLAIN
    if config.shard and config.execution == AUTO:
        # each process would choose by its own shapes, and a process with one more gather of a
        # sharded block would wait for ever
        return BRANCHES
    return config.execution


def choose_execution(
    model: LatentModel, wanted: str, encoder: ExampleEncoder, encoded: Encoded, say: Say
) -> None:
    """Sets `model.execution`, so that prompts are computed once, if `wanted` is not plain and a
    check on the first rows passes; else reports why not.

    The choice depends only on the initial model and the data, so a resumed run makes the same one.
    """
    if wanted == PLAIN:
        return
    # backwards, so that rows are not in the order of their prompts
    classes = length_classes(encoded, encoder, model.pass_lengths)
    rows = np.flatnonzero(classes == classes[0])[:CHECKED_ROWS][::-1].copy()
    window = window_of(model.backbone)
    longest = int(encoded.lengths.max()) + model.section
    reason: str | None
    if wanted != AUTO and window and longest > window:  # "auto" runs only the long batches as plain
        reason = f"its sliding window holds {window} tokens, the longest sequence has {longest}"
    else:
        batch = collate(rows, encoded, encoder, None)
        reason = check_packing(model, batch.to(model.backbone.device))
    if reason is None:
        model.execution = wanted
    else:
        say(f"execution: plain, which computes the prompt again for each latent: {reason}")


def check_packing(model: LatentModel, batch: Batch) -> str | None:
    """Why the model must use the plain execution, or None. Runs `batch` in each execution and
    compares it with plain.

    Compares a loss that weights every branch differently, and its gradient if gradients are
    enabled.
    """
    reason = why_not_packed(model.backbone)
    if reason:
        return reason
    parameters = [p for p in model.parameters() if p.requires_grad and torch.is_grad_enabled()]
    before = model.execution
    most = SHARE[flash.dtype_of(model.backbone)]
    seen: dict[str, Measured] = {}

    def difference(form: str) -> float:
        """How far loss and gradient of an execution are from those of the plain one."""
        model.execution = form
        output = model(batch)
        loss = _probe(output)
        gradient: tuple[torch.Tensor | None, ...] = ()
        if parameters:
            gradient = torch.autograd.grad(loss, parameters, allow_unused=True)
        seen[form] = loss.detach(), gradient
        return _difference(seen[form], seen[PLAIN])

    try:
        for form in (PLAIN, BRANCHES, TREE):
            way = f"its {form} execution"
            if reason := why_not(way, partial(difference, form), most, "of the loss or gradient"):
                return reason
    finally:
        model.execution = before
    return None


def _probe(output: LatentOutput) -> torch.Tensor:
    """A sum in which every branch, the router and the posterior count differently."""
    weights = torch.arange(1, 1 + output.nll_BCS.shape[1], device=output.nll_BCS.device)
    nll_BC = output.nll_BCS.sum(-1)
    loss = (nll_BC * weights).sum() + (output.log_router_BK * weights).sum()
    if output.log_posterior_BK is None:
        return loss
    return loss + (output.log_posterior_BK * weights).sum()


def _difference(one: Measured, other: Measured) -> float:
    """Larger of the relative differences of the losses and of the whole gradients."""
    loss, gradient = one
    plain_loss, plain_gradient = other
    difference = float((loss - plain_loss).abs() / plain_loss.abs())
    pairs = [(a, b) for a, b in zip(gradient, plain_gradient, strict=True) if b is not None]
    if not pairs:
        return difference
    apart = sum((a - b).double().square().sum() for a, b in pairs)
    size = sum(b.double().square().sum() for _, b in pairs)
    of_gradients = (apart / size).sqrt()
    return max(difference, float(of_gradients))


def load_as_trained(run: RunFolder, config: TrainConfig, encoder: ExampleEncoder) -> Any:
    """The `peft.PeftModel` that a run with `--adapt lora` trained: the model below it in float32
    with the run's adapter, which is not merged.

    It is made as the training made it, from the run's settings; of peft's files only the weights
    and the numbers of the new tokens are read.

    Args:
        encoder: that of the finished run.

    Raises:
        UserError: the model below cannot be loaded, or the adapter does not fit it.
    """
    from peft import set_peft_model_state_dict

    backbone = loading.load_model(config.model, attention="sdpa")
    grow_embeddings(backbone, max(encoder.tokenizer.get_vocab().values()) + 1)
    settings = json.loads((run.adapter / "adapter_config.json").read_bytes())
    tokens = settings["trainable_token_indices"]
    if isinstance(tokens, dict):  # the same for embeddings and LM head
        tokens = next(iter(tokens.values()))
    adapter = add_lora(
        backbone,
        tokens,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        targets=config.lora_targets,
        seed=config.seed,
    )
    weights = load_file(run.adapter / "adapter_model.safetensors")
    try:
        found = set_peft_model_state_dict(adapter, weights)
    except RuntimeError as error:  # other sizes
        raise UserError(
            f"{run.adapter}: does not fit {config.model}: {first_line(error)}"
        ) from error
    if found.unexpected_keys:
        raise UserError(
            f"{run.adapter}: does not fit {config.model}, which has no {found.unexpected_keys[0]}"
        )
    return adapter.eval()


def load_run(
    run: RunFolder, *, device: str, precision: str, attention: str, say: Say = runtime.silent
) -> tuple[LatentModel, ExampleEncoder, TrainConfig]:
    """The trained model of a finished run, in eval mode.

    Raises:
        UserError: there is no run, it is not finished, or it is damaged.
    """
    config = run.read_config()
    if not run.done:
        raise UserError(
            f"{run.path}: the run is not finished; run its `twcli train` command again to resume"
        )
    run.check_results()
    encoder = loading.load_encoder(str(run.model), config.latent_tokens, run.template)
    backbone = loading.load_model(str(run.model), precision=precision, attention=attention, say=say)
    encoder.token_rows.take_ends(backbone.generation_config)
    model = LatentModel(
        backbone,
        encoder.latent_ids(config.resolved_latents),
        config.posterior,
        dynamic_baseline=config.baseline_policy == "dynamic",
    )
    if config.posterior != "exact":
        shapes = {
            name: tensor.shape
            for name, tensor in model.state_dict().items()
            if not name.startswith("backbone.")
        }
        stored = run.load_posterior()
        stored_shapes = {name: tensor.shape for name, tensor in stored.items()}
        if shapes != stored_shapes:
            raise UserError(
                f"{run.posterior_file}: does not fit the model; run `twcli train --overwrite` again"
            )
        model.load_state_dict(stored, strict=False)
    return model.to(runtime.pick_device(device)).eval(), encoder, config
