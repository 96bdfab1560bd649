"""Training: a job goes in; metrics come out step by step; the run folder holds the rest.

Prints nothing. Shapes: B batch, K latents, S supervised tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from twcli import signals
from twcli.data.batches import Batch, batches_to_read, collate, drop_history, opening
from twcli.discovery.naming import anchored, naming_record
from twcli.discovery.prior import assign_rows, without_spares
from twcli.discovery.score import run_score
from twcli.errors import Interrupted, WorkFailed, how_to_resume
from twcli.kernels.packing import PLAIN
from twcli.models import runtime
from twcli.models.adapters import new_row_gradients
from twcli.models.card import model_card
from twcli.models.sharding import shard, whole
from twcli.storage.run_folder import TEMPLATE
from twcli.training import diagnostics
from twcli.training.job import ADAM_BETAS, Job, Say, plan_of
from twcli.training.loss import responsibilities
from twcli.training.objective import step_loss
from twcli.training.regularisers import annealed_beta
from twcli.training.retention import Retention, judged_by_probe, retention
from twcli.training.stages import FREE, REFINE, ahead, batches, read_ahead
from twcli.training.state import restore, snapshot

WARMUP_SHARE = 0.05
FINAL_LR_SHARE = 0.1
CLIP_NORM = 1.0


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to a tenth."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    phase = (step - warmup) / max(1, steps - warmup)
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * phase))


def begin(job: Job) -> None:
    """Puts down the run's settings, before any process reads what an earlier run left."""
    if job.accelerator.is_main_process:
        job.run.begin(job.config, job.naming and naming_record(job.naming))
    job.accelerator.wait_for_everyone()


def fit(job: Job, say: Say) -> Iterator[dict[str, Any]]:
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
    config, accelerator, run = job.config, job.accelerator, job.run
    if config.gradient_checkpointing:
        runtime.checkpoint_activations(job.model.backbone)
    if config.compile:
        job.model.backbone.base_model.compile(dynamic=True)
    if sharded := config.shard and accelerator.num_processes > 1:
        shard(job.model, accelerator.num_processes)
    trained = (p for p in job.model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(
        trained, lr=job.lr, betas=ADAM_BETAS, weight_decay=0.0, fused=True
    )
    model, optimizer = (
        (job.model, optimizer) if sharded else accelerator.prepare(job.model, optimizer)
    )
    held_rows = np.flatnonzero(job.latent_N >= 0)
    step, tensors, notes = run.checkpoints.newest(job.provenance)
    for note in notes:
        say(note)
    if step:
        restore(job.model, optimizer, job.latent_N, tensors)
        say(f"resuming after step {step} of {job.steps}")
    watch = diagnostics.Watch(job.steps, config.latents, config.uses_weights)
    if accelerator.is_main_process:
        for seen in run.cut_back(step):  # what was told before the interruption is not told again
            watch.see(seen)
    model.train()
    steps = batches(
        job.stages,
        step,
        partial(plan_of, config, job.encoded),
        held_rows,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulate=config.accumulate,
    )
    stream = read_ahead(
        steps, partial(collate, encoded=job.encoded, template=job.template, cache=job.cache)
    )
    writes_events = config.tensorboard and accelerator.is_main_process
    with signals.held() as pending, run.events(step) if writes_events else nullcontext():
        for stage, read in stream:
            metrics = _step(job, model, optimizer, stage, read, step)
            step += 1
            # All processes stop at the same step, whichever of them the signal reached.
            stopping = bool(
                accelerator.reduce(torch.tensor(float(pending()), device=accelerator.device))
            )
            saving = step % config.checkpoint_every == 0 or step == job.steps or stopping
            tensors = {}
            if saving and (sharded or accelerator.is_main_process):
                tensors = snapshot(
                    job.model, optimizer, job.latent_N, keep=accelerator.is_main_process
                )
            if accelerator.is_main_process:
                run.append_metrics(metrics)
                news = watch.see(metrics)
                for line in watch.standing() if step == job.steps else news:
                    say(f"step {step}: {line}")
                if saving:
                    run.save_checkpoint(step, tensors, config.keep_checkpoints, job.provenance)
            yield metrics
            if stopping:
                raise Interrupted(
                    f"interrupted after step {step} of {job.steps}, which is stored; "
                    f"{how_to_resume(config.overwrite)}"
                )
    accelerator.wait_for_everyone()


def _step(
    job: Job, model: Any, optimizer: Any, stage: str, read: list[Batch], step: int
) -> dict[str, Any]:
    """One optimiser step over this process's batches; the loss is the mean over all
    records of all processes.
    """
    accelerator = job.accelerator
    for group in optimizer.param_groups:
        group["lr"] = job.lr * schedule(step, job.steps)
    mine = sum(len(batch.rows_B) for batch in read)
    records = int(accelerator.reduce(torch.tensor(float(mine), device=accelerator.device)).item())
    seen = []
    for number, batch in enumerate(read):
        with _synchronised(accelerator, model, number == len(read) - 1):
            seen.append(
                _backward(
                    job, model, stage, batch, step, number, accelerator.num_processes / records
                )
            )
    if accelerator.num_processes > 1:
        seen = gather_object(seen)
    posterior = (
        p.grad
        for name, p in job.model.named_parameters()
        if not name.startswith("backbone.") and p.grad is not None
    )
    norms = diagnostics.gradient_norms(
        map(whole, posterior), new_row_gradients(job.model.backbone, job.model.latent_ids_KP)
    )
    norm = float(whole(accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)))
    metrics = diagnostics.pooled(seen)
    if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
        rows = torch.cat([batch.rows_B for batch in read]).numpy()
        raise _diverged(
            job, step, rows, f"the loss is {metrics['loss']} and its gradient norm {norm}"
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


def _synchronised(accelerator: Any, model: Any, last: bool) -> Any:
    """Within it a backward pass adds up gradients over the processes only
    if it is the step's last.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last else accelerator.no_sync(model)


def _backward(
    job: Job, model: Any, stage: str, batch: Batch, step: int, number: int, scale: float
) -> dict[str, Any]:
    """Adds one batch's gradient, `scale` times the sum over its records; returns its figures."""
    config, accelerator = job.config, job.accelerator
    rows, batch = batch.rows_B.numpy(), batch.to(accelerator.device)
    refined_BCS, pruned = _refine(job, batch, rows, step) if stage == REFINE else (None, 0.0)
    if config.history_dropout:
        batch = drop_history(
            batch, config.history_dropout, _draws(job, 4, step, number), job.template.pad
        )
    latent_B = written_B = None
    if stage != FREE:
        held_B = job.latent_N[rows]
        latent_B, written_B = (
            torch.from_numpy(latents).to(accelerator.device)
            for latents in (
                held_B,
                _understudied(held_B, job.used, config.latents, _draws(job, 5, step, number)),
            )
        )
    # How many passes are pruned away hangs on the batch: processes that share the weights would
    # wait for one another for ever.
    prune = 0.0 if config.shard or config.posterior_update != "learned" else config.prune
    # what the backbone's own dropout draws from
    torch.manual_seed(int(_draws(job, 6, step, number).integers(2**63)))
    with accelerator.autocast():
        # Reading the posterior as well would be one pass more than K + 1; `settle`
        # teaches it the same latents.
        output = model(
            batch,
            written_B,
            read_posterior=stage != REFINE,
            read_divergence=stage == FREE and config.divergence > 0,
            prune=prune,
        )
    sequences = output.sequences + (
        0 if refined_BCS is None else refined_BCS.shape[0] * refined_BCS.shape[1]
    )
    beta = annealed_beta(
        config.beta, step, job.steps, warmup=config.beta_warmup, cycles=config.beta_cycles
    )
    try:
        loss_B, parts = step_loss(output, batch, config, latent_B, refined_BCS, beta=beta)
    except ValueError as error:  # the backbone's own b_t, once it has diverged
        raise _diverged(job, step, rows, str(error)) from error
    accelerator.backward(loss_B.sum() * scale)
    return {
        "loss": loss_B.mean().item(),
        **parts,
        "records": len(rows),
        "sequences_per_record": sequences / len(rows),
        "pruned": pruned + output.pruned,
    }


@torch.no_grad()
def _refine(job: Job, batch: Batch, rows: np.ndarray, step: int) -> tuple[torch.Tensor, float]:
    """NLL (B, C, S) of the C latents that are used, after it has assigned the batch's completions
    to those that make them likeliest.

    Under the naming's prior, in eval mode and from summed log-likelihood, as responsibilities are;
    the router has no say, or frequent latents would take what rare ones explain better. Where
    strategies may repeat within a prompt, the naming's own probabilities count too: without them
    the generator would merge strategies. Under `--trust` the named latents have a say at first.

    Under `--prune` the branches are read to the last token that b_t needs. The NLL of later ones is
    0, as if no latent differed there; the share of b_t that they hold comes back too. The step's
    loss is exact for the latents assigned.
    """
    opened, pruned = opening(batch, job.config.prune)
    job.model.eval()
    with job.accelerator.autocast():
        nll_BCS, _ = job.model.read_branches(opened, job.used)
    job.model.train()
    nll_BCS = torch.nn.functional.pad(nll_BCS, (0, batch.targets_BS.shape[1] - nll_BCS.shape[2]))
    cost_BC = nll_BCS.double().sum(-1).cpu().numpy()
    if not np.isfinite(cost_BC).all():
        raise _diverged(job, step, rows, "the generator's NLL is not finite")
    share = ahead(job.stages, step, REFINE)
    found = [
        (
            rows,
            assign_rows(
                without_spares(job.naming.prior, job.used),
                anchored(job.naming, rows, job.used, job.config.trust * share) - cost_BC,
                job.encoded.prompt_index[rows],
                job.encoded.row_hash[rows],
            ),
        )
    ]
    # every process keeps all that were found: it may meet them in `settle`
    for where, latents in gather_object(found):
        job.latent_N[where] = latents
    return nll_BCS, pruned


def _draws(job: Job, purpose: int, step: int, number: int) -> np.random.Generator:
    """For one batch: from the numbers of step and batch and no running state, so that a
    resumed run draws the same.
    """
    return np.random.default_rng(
        [
            job.config.seed,
            purpose,
            step,
            job.accelerator.process_index * job.config.accumulate + number,
        ]
    )


def _understudied(
    latent_B: np.ndarray, used: int, latents: int, rng: np.random.Generator
) -> np.ndarray:
    """The latent (B,) under which the generator writes each row: by chance the one that is used
    or one of its understudies.

    So that each of the K latents writes something for every x; router and posterior
    know those that are used.
    """
    understudies_B = (latents - 1 - latent_B) // used
    return latent_B + used * rng.integers(understudies_B + 1)


def _diverged(job: Job, step: int, rows: np.ndarray, what: str) -> WorkFailed:
    last = job.run.checkpoints.last or "none yet"
    return WorkFailed(
        f"step {step + 1}: {what}, on data lines {', '.join(str(r + 1) for r in rows[:8])} ...; "
        f"last checkpoint: {last}; try a lower --lr"
    )


@torch.no_grad()
def score(job: Job, progress: Callable[[str, int], Any]) -> tuple[float | None, list[Retention]]:
    """(the `score` of `twcli eval`, on records of training: the alignment to expect, from 0 to 1,
    without a label; what became of each latent's completions). None and nothing where no prompts
    have several completions.
    """
    if job.probe is None or job.frozen_nll_N is None:
        return None, []
    job.model.eval()
    rows, latents = job.probe.rows, job.model.latents
    soft_NK, generator_NK, marginal_N = (
        np.empty((len(rows), latents)),
        np.empty((len(rows), latents)),
        np.empty(len(rows)),
    )
    with progress("score", len(rows)) as advance:
        for places in batches_to_read(
            job.encoded,
            rows,
            batch_tokens=job.config.batch_tokens,
            branches=job.model.latents,
            shared=job.model.execution != PLAIN,
        ):
            batch = collate(rows[places], job.encoded, job.template, None).to(
                job.accelerator.device
            )
            with job.accelerator.autocast():
                nll_BKS, log_p_BK = job.model.read_branches(batch)
            soft_NK[places], marginal_N[places] = (
                t.cpu() for t in responsibilities(nll_BKS, log_p_BK)
            )
            generator_NK[places] = nll_BKS.double().sum(-1).cpu()
            advance(len(places))
    # Without a naming the generator itself says which latent a completion has.
    named_N = job.latent_N[rows]
    latent_N = named_N if (named_N >= 0).any() else soft_NK.argmax(1)
    found = retention(latent_N, job.frozen_nll_N, marginal_N, generator_NK)
    records = judged_by_probe(job.probe, soft_NK, job.frozen_nll_N, marginal_N, job.config.seed)
    return run_score(records, latents), found


def export(job: Job) -> None:
    """Publishes the posterior's modules and, last, `model/` that plain transformers
    loads and generates from.
    """
    model = job.model
    # by all processes, where they hold parts
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    if not job.accelerator.is_main_process:
        return
    weights = None
    if isinstance(model, FSDPModule):
        weights = {
            name.removeprefix("backbone."): tensor
            for name, tensor in state.items()
            if name.startswith("backbone.")
        }
    if job.adapter is not None:
        job.run.save_adapter(job.adapter)
        job.adapter.merge_and_unload()
    job.run.save_posterior(
        {k: v for k, v in state.items() if not k.startswith("backbone.")}
        or {"exact": torch.zeros(1)}
    )
    ends = [job.template.y_close, job.template.eos]
    model.backbone.generation_config = GenerationConfig(
        bos_token_id=job.template.bos, eos_token_id=ends, pad_token_id=job.template.pad
    )
    with job.run.publishing_model() as folder:
        model.backbone.save_pretrained(folder, safe_serialization=True, state_dict=weights)
        job.template.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(
            model_card(job.config, job.template, runtime.versions(), job.steps), encoding="utf-8"
        )
        if job.config.template != "tags":
            (folder / TEMPLATE).write_text(job.template.frame.text + "\n", encoding="utf-8")
