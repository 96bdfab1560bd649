"""Training: a setup goes in; metrics come out step by step; the run folder holds the rest.

Prints nothing. Shapes: B batch, K latents, S supervised tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed.fsdp import FSDPModule

from twcli import signals
from twcli.data.batches import Batch, collate, drop_history
from twcli.discovery.prior import assign_rows, without_spares
from twcli.discovery.result import naming_record
from twcli.errors import WorkFailed, interrupted
from twcli.kernels.body import body_of
from twcli.models import runtime
from twcli.models.adapters import new_row_gradients
from twcli.models.runtime import Say
from twcli.models.sharding import shard, whole
from twcli.training import diagnostics
from twcli.training.average import WeightAverage
from twcli.training.held_out import HeldOut, HeldOutNll, measurement, read_held_out
from twcli.training.objective import step_loss
from twcli.training.regularisers import annealed_beta
from twcli.training.schedule import batch_sampler_of
from twcli.training.setup import ADAM_BETAS, Setup
from twcli.training.stages import FREE, HOLD, REFINE, batches, prefetch
from twcli.training.state import restore, snapshot

CLIP_NORM = 1.0


def begin(setup: Setup) -> None:
    """Puts down the run's settings, before any process reads what an earlier run left."""
    if setup.accelerator.is_main_process:
        if setup.naming is None:
            naming = None
        else:
            naming = naming_record(setup.naming)
        setup.run.begin(setup.config, naming)
    setup.accelerator.wait_for_everyone()


def fit(setup: Setup, say: Say) -> Iterator[dict[str, Any]]:
    """Trains from the newest checkpoint to the last step, yielding each step's metrics.

    Args:
        say: takes one line a fact: what is resumed, and which of the
            conditions in `diagnostics` holds.

    Raises:
        UserError: the newest checkpoint was made from something else.
        WorkFailed: a loss or gradient is not finite; the step, rows and last
            good checkpoint are named.
        Interrupted: a signal came; the step was finished and a checkpoint saved.
    """
    config = setup.config
    accelerator = setup.accelerator
    run = setup.run
    sharded = config.shard and accelerator.num_processes > 1
    model, optimizer = _prepared(setup, sharded)
    average = WeightAverage(setup.model, setup.course.planned)
    rows = np.setdiff1d(np.arange(len(setup.encoded)), setup.held.rows_H)
    # before a checkpoint changes them: `hold` takes the same rows as at the start
    named_rows = rows[setup.latent_N[rows] >= 0]
    watch = diagnostics.Watch(setup.steps, config.resolved_latents, config.uses_weights)
    step = _resumed(setup, optimizer, average, watch, say)
    setup.model.section_width = setup.course.section_width(step)
    model.train()
    leads = accelerator.is_main_process
    tracked: AbstractContextManager[None] = nullcontext()
    if config.tracker is not None and leads:
        tracked = run.tracked(config.tracker, step)
    with signals.held() as pending, tracked:
        for stage, at_once in _batches_from(setup, step, named_rows, rows):
            metrics = _step(setup, model, optimizer, stage, at_once, step)
            step += 1
            # what is measured now is written as the next step writes it
            setup.model.section_width = setup.course.section_width(step)
            average.update(step)
            if setup.held.due(step):
                metrics |= _measured(setup, step)
                setup.course.observe(step, metrics)
            # All processes stop at the same step, whichever of them the signal reached.
            stopping = _any_process(accelerator, pending())
            saving = step % config.checkpoint_every == 0 or step == setup.steps or stopping
            tensors = {}
            if saving and (sharded or leads):
                tensors = snapshot(setup.model, optimizer, setup.latent_N, average, keep=leads)
            if leads:
                run.append_metrics(metrics)
                news = watch.see(metrics)
                for line in watch.standing(again=False) if step == setup.steps else news:
                    say(f"step {step}: {line}")
                if saving:
                    run.save_checkpoint(step, tensors, config.keep_checkpoints, setup.provenance)
            yield metrics
            if stopping:
                raise interrupted(
                    f" after step {step} of {setup.steps}, which is stored",
                    overwrite=config.overwrite,
                )
    _choose_weights(setup, average, say)
    accelerator.wait_for_everyone()


def _batches_from(
    setup: Setup, step: int, named_rows: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[str, list[Batch]]]:
    """The stage and this process's batches of each step from `step` on, collated ahead of time.

    Args:
        named_rows, rows: as of `stages.batches`.
    """
    config = setup.config
    accelerator = setup.accelerator
    sampler_of = partial(
        batch_sampler_of,
        config,
        setup.encoded,
        classes=setup.classes,
        repeats=setup.repetitions.times_N,
    )
    steps = batches(
        setup.course,
        step,
        sampler_of,
        named_rows,
        rows,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulate=config.accumulate,
    )
    read = partial(collate, encoded=setup.encoded, encoder=setup.encoder, cache=setup.cache)
    return prefetch(steps, read)


def _any_process(accelerator: Any, here: bool) -> bool:
    """Whether something is so in any process; a sum over all of them, so that each has the same
    answer.
    """
    own = torch.tensor(float(here), device=accelerator.device)
    return bool(accelerator.reduce(own))


def _prepared(setup: Setup, sharded: bool) -> tuple[Any, Any]:
    """The module to call, and the optimiser, both as accelerate or FSDP wants them."""
    config = setup.config
    if config.gradient_checkpointing:
        runtime.checkpoint_activations(setup.model.backbone)
    if config.compile:
        body_of(setup.model.backbone).compile(dynamic=True)
    if sharded:
        shard(setup.model, setup.accelerator.num_processes)
    trained = (p for p in setup.model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(
        trained, lr=setup.lr, betas=ADAM_BETAS, weight_decay=0.0, fused=True
    )
    if sharded:
        return setup.model, optimizer
    model, optimizer = setup.accelerator.prepare(setup.model, optimizer)
    return model, optimizer


def _resumed(
    setup: Setup, optimizer: Any, average: WeightAverage, watch: diagnostics.Watch, say: Say
) -> int:
    """Puts back the newest checkpoint, and tells the course and the watch what was measured up to
    it; returns its step, 0 where there is none.
    """
    run = setup.run
    step, tensors, notes = run.checkpoints.newest(setup.provenance, setup.config.retired)
    for note in notes:
        say(note)
    if step:
        restore(setup.model, optimizer, setup.latent_N, average, tensors)
        say(f"resuming after step {step} of {setup.steps}")
    before: list[dict[str, Any]] = []
    if setup.accelerator.is_main_process:
        before = run.cut_back(step)
        for seen in before:  # what was reported before the interruption is not reported again
            watch.see(seen)
    measured = [seen for seen in before if "held_out_nll" in seen]
    for seen in broadcast_object_list([measured])[0]:
        setup.course.observe(seen["step"], seen)
    return step


def _choose_weights(setup: Setup, average: WeightAverage, say: Say) -> None:
    """The mean of the last steps' weights, unless held-out records are likelier under the last
    ones.
    """
    held = setup.held
    if len(held.rows_H):
        say(
            f"weights: the last step's are compared with the mean of the last steps' on "
            f"{len(held.rows_H):,} held-out records"
        )
        last = measurement(held, held_out_nll(setup, held))["held_out_nll"]
        with average.in_place():
            mean = measurement(held, held_out_nll(setup, held))["held_out_nll"]
        last, mean = broadcast_object_list([last, mean])
        name = "mean of the last steps" if mean <= last else "last step"
        say(
            f"weights: those of the {name}; held-out NLL {mean:.3f} nats per example with the "
            f"mean, {last:.3f} with the last"
        )
        if mean > last:
            return
    average.adopt()


def _measured(setup: Setup, step: int) -> dict[str, Any]:
    """What held-out records say after `step` steps, in nats: the same in all processes, whose
    rounding may differ.
    """
    held = setup.held.monitored()
    nll = held_out_nll(setup, held)
    found = measurement(held, nll)
    (shared,) = broadcast_object_list([found])
    return cast(dict[str, Any], shared)


def held_out_nll(setup: Setup, held: HeldOut) -> HeldOutNll:
    """What the model says of held-out records now."""
    return read_held_out(
        held,
        setup.model,
        setup.encoded,
        setup.encoder,
        setup.cache,
        setup.config,
        setup.accelerator,
        setup.classes,
    )


def _step(
    setup: Setup, model: Any, optimizer: Any, stage: str, read: list[Batch], step: int
) -> dict[str, Any]:
    """One optimiser step over this process's batches; the loss is the mean over all
    records of all processes.
    """
    accelerator = setup.accelerator
    for group in optimizer.param_groups:
        group["lr"] = setup.lr * setup.course.rate(step)
    mine = sum(len(batch.rows_B) for batch in read)
    records = int(accelerator.reduce(torch.tensor(float(mine), device=accelerator.device)).item())
    scale = accelerator.num_processes / records
    seen = []
    for number, batch in enumerate(read):
        with _synchronised(accelerator, model, number == len(read) - 1):
            seen.append(_backward(setup, model, stage, batch, step, number, scale))
    if accelerator.num_processes > 1:
        seen = gather_object(seen)
    norms = _gradient_norms(setup)
    norm = float(whole(accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)))
    metrics = diagnostics.pooled(seen)
    if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
        rows = torch.cat([batch.rows_B for batch in read]).numpy()
        raise _diverged(
            setup, step, rows, f"the loss is {metrics['loss']} and its gradient norm {norm}"
        )
    optimizer.step()
    optimizer.zero_grad()
    return {
        "step": step + 1,
        "stage": stage,
        **metrics,
        **norms,
        "gradient_norm": norm,
        "lr": optimizer.param_groups[0]["lr"],
    }


def _gradient_norms(setup: Setup) -> dict[str, float | None]:
    """As `diagnostics.gradient_norms`, of this step's gradients."""
    posterior_gradients = []
    for name, parameter in setup.model.named_parameters():
        if not name.startswith("backbone.") and parameter.grad is not None:
            posterior_gradients.append(whole(parameter.grad))
    latent_gradient = new_row_gradients(setup.model.backbone, setup.model.latent_ids_KP)
    return diagnostics.gradient_norms(posterior_gradients, latent_gradient)


def _synchronised(accelerator: Any, model: Any, last: bool) -> Any:
    """Within it a backward pass adds up gradients over the processes only
    if it is the step's last.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    if last:
        return nullcontext()
    return accelerator.no_sync(model)


def _backward(
    setup: Setup, model: Any, stage: str, batch: Batch, step: int, number: int, scale: float
) -> dict[str, Any]:
    """Adds one batch's gradient, `scale` times the sum over its records; returns its figures."""
    config = setup.config
    accelerator = setup.accelerator
    rows = batch.rows_B.numpy()
    batch = batch.to(accelerator.device)
    if stage == REFINE:
        refined_BCS, pruned = _refine(setup, batch, rows, step)
    else:
        refined_BCS, pruned = (None, 0.0)
    if config.history_dropout:
        draws = _draws(setup, 4, step, number)
        batch = drop_history(batch, config.history_dropout, draws, setup.encoder.pad)
    latent_B = written_B = weight_B = None
    if stage != FREE:
        latent_B, written_B = _held_latents(setup, rows, step, number)
    if stage == HOLD:
        weights = torch.from_numpy(setup.repetitions.weight_N[rows])
        weight_B = weights.to(accelerator.device, torch.float32)
    # How many passes are pruned away depends on the batch: processes that share the weights would
    # wait for one another for ever.
    if config.shard or config.posterior_update != "learned":
        prune = 0.0
    else:
        prune = config.prune
    # what the backbone's own dropout draws from
    seed = _draws(setup, 6, step, number).integers(2**63)
    torch.manual_seed(int(seed))
    with accelerator.autocast():
        # Reading the posterior as well would be one pass more than K + 1; `settle`
        # teaches it the same latents.
        output = model(
            batch,
            written_B,
            with_posterior=stage != REFINE,
            with_divergence=stage == FREE and config.divergence > 0,
            prune=prune,
        )
    sequences = output.sequences
    if refined_BCS is not None:
        sequences += refined_BCS.shape[0] * refined_BCS.shape[1]
    beta = annealed_beta(
        config.beta,
        step,
        setup.course.planned,
        warmup=config.beta_warmup,
        cycles=config.beta_cycles,
    )
    try:
        loss_B, parts = step_loss(output, batch, config, latent_B, refined_BCS, weight_B, beta=beta)
    except ValueError as error:  # the backbone's own b_t, once it has diverged
        raise _diverged(setup, step, rows, str(error)) from error
    accelerator.backward(loss_B.sum() * scale)
    return {
        "loss": loss_B.mean().item(),
        **parts,
        "records": len(rows),
        "sequences_per_record": sequences / len(rows),
        "pruned": pruned + output.pruned,
    }


def _held_latents(
    setup: Setup, rows: np.ndarray, step: int, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rows (B,) are held: the latent (B,) that the posterior is taught, and the one (B,) that
    the generator is given, which may be a spare one beside it.
    """
    device = setup.accelerator.device
    held_B = setup.latent_N[rows]
    draws = _draws(setup, 5, step, number)
    spread_B = _spare_latents(held_B, setup.used, setup.config.resolved_latents, draws)
    return torch.from_numpy(held_B).to(device), torch.from_numpy(spread_B).to(device)


@torch.no_grad()
def _refine(setup: Setup, batch: Batch, rows: np.ndarray, step: int) -> tuple[torch.Tensor, float]:
    """NLL (B, C, S) of the C latents that are used, after it has assigned the batch's completions
    to those that make them likeliest.

    Under the naming's prior, in eval mode and from summed log-likelihood, as responsibilities are;
    the router has no say, or frequent latents would take what rare ones explain better.

    Under `--prune` the branches are read to the last token that b_t needs. The NLL of later ones is
    0, as if no latent differed there; the share of b_t that they hold comes back too. The step's
    loss is exact for the latents assigned.
    """
    opened, pruned = setup.model.opened(batch, setup.config.prune)
    setup.model.eval()
    with setup.accelerator.autocast():
        nll_BCS, _ = setup.model.score_branches(opened, setup.used)
    setup.model.train()
    nll_BCS = torch.nn.functional.pad(nll_BCS, (0, batch.targets_BS.shape[1] - nll_BCS.shape[2]))
    cost_BC = nll_BCS.double().sum(-1).cpu().numpy()
    if not np.isfinite(cost_BC).all():
        raise _diverged(setup, step, rows, "the generator's NLL is not finite")
    assert setup.naming is not None  # without one no step refines
    assigned_B = assign_rows(
        without_spares(setup.naming.prior, setup.used),
        -cost_BC,
        setup.encoded.prompt_index[rows],
        setup.encoded.row_hash[rows],
    )
    # every process keeps all that were found: it may meet them in `settle`
    for where, latents in gather_object([(rows, assigned_B)]):
        setup.latent_N[where] = latents
    return nll_BCS, pruned


def _draws(setup: Setup, purpose: int, step: int, number: int) -> np.random.Generator:
    """For one batch: from the numbers of step and batch and no running state, so that a
    resumed run draws the same.
    """
    return np.random.default_rng(
        [
            setup.config.seed,
            purpose,
            step,
            setup.accelerator.process_index * setup.config.accumulate + number,
        ]
    )


def _spare_latents(
    latent_B: np.ndarray, used: int, latents: int, rng: np.random.Generator
) -> np.ndarray:
    """The latent (B,) under which the generator writes each row: by chance the one that is used
    or a spare one that shares its rows.

    So that each of the K latents writes something for every x; router and posterior
    know those that are used.
    """
    spares_B = (latents - 1 - latent_B) // used
    return latent_B + used * rng.integers(spares_B + 1)


def _diverged(setup: Setup, step: int, rows: np.ndarray, what: str) -> WorkFailed:
    """The error for a loss or gradient that is not finite: where, and what to resume from."""
    last = setup.run.checkpoints.last or "none yet"
    return WorkFailed(
        f"step {step + 1}: {what}, on data lines {', '.join(str(r + 1) for r in rows[:8])} ...; "
        f"last checkpoint: {last}; try a lower --lr"
    )
