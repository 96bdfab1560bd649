"""`twcli sample`: completions of the frozen model, or of a run under one latent, all of them or the router's choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from twcli import runtime
from twcli.config import SampleConfig
from twcli.dataset import read_examples
from twcli.errors import UserError
from twcli.generation import generate, router_probabilities
from twcli.runs import RunFolder
from twcli.trainer import load_run


def sample(config: SampleConfig, say: Callable[[str], None], progress: Callable[[str, int], Any]) -> list[str]:
    """JSON lines with x, y and, from a run, the latent; each distinct prompt once, times n (times the latents).

    Raises:
        UserError: the model, the run, the latent or the data is wrong, or a prompt fills the context.
    """
    xs = [config.x] if config.x is not None else list(dict.fromkeys(
        e.x for e in read_examples(config.data, x_field=config.x_field, y_field=None)))
    if config.run is not None:
        latent_model, template, trained = load_run(RunFolder(config.run), device=config.device,
                                                   precision=config.precision, attention=config.attention)
        model, latent_ids = latent_model.backbone, template.latent_ids(trained.latents)
    else:
        model, template = runtime.load_frozen(config.model, precision=config.precision, attention=config.attention,
                                              template=config.template)
        model.to(runtime.pick_device(config.device))
        latent_ids = []
    plain = [template.router_prompt(x) for x in xs]
    chosen = _latents(config, latent_ids, lambda: router_probabilities(
        model, template, plain, latent_ids, batch_tokens=config.batch_tokens), len(xs))
    jobs = [(row, latent) for row, latents in enumerate(chosen) for latent in latents]
    prompts = [template.prompt(xs[row], None if latent is None else latent_ids[latent]) for row, latent in jobs]
    room = runtime.context_length(model, config.max_length) - max(map(len, prompts))
    if room < 1:
        raise UserError(f"{config.data or '--x'}: the longest prompt fills the context of {len(max(prompts, key=len)) + room} tokens")
    with progress("sampling", len(prompts)) as advance:
        texts = generate(model, template, prompts, max_new_tokens=min(config.max_new_tokens or room, room),
                         temperature=config.temperature, seed=config.seed, batch_tokens=4 * config.batch_tokens,
                         progress=advance)
    empty = sum(not text for text in texts)
    if empty:
        say(f"{empty:,} of {len(texts):,} completions were empty and are left out")
    return [json.dumps({"x": xs[row], "y": text} | ({} if latent is None else {"latent": latent}), ensure_ascii=False)
            for (row, latent), text in zip(jobs, texts, strict=True) if text]


def _latents(config: SampleConfig, latent_ids: list[list[int]], router: Callable[[], np.ndarray],
             prompts: int) -> list[list[int | None]]:
    """For each prompt the latents of its completions; [None] x n for the frozen model."""
    if not latent_ids:
        return [[None] * config.n] * prompts
    if config.latent == "all":
        return [[k for k in range(len(latent_ids)) for _ in range(config.n)]] * prompts
    if config.latent in (None, "router"):
        rng = np.random.default_rng([config.seed, 3])
        return [rng.choice(len(latent_ids), config.n, p=p / p.sum()).tolist() for p in router().astype(np.float64)]
    if int(config.latent) >= len(latent_ids):
        raise UserError(f"--latent {config.latent}: the run has the latents 0 to {len(latent_ids) - 1}")
    return [[int(config.latent)] * config.n] * prompts
