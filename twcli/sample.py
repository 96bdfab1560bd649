"""`twcli sample`: completions of the frozen model, or of a run under one latent, all of them or the router's choice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from twcli import runtime
from twcli.building import load_run
from twcli.config import SampleConfig
from twcli.dataset import stream_examples
from twcli.errors import UserError
from twcli.generation import generate, router_probabilities
from twcli.runs import RunFolder
from twcli.template import Template


@dataclass(frozen=True)
class Sampler:
    """A model that was loaded to complete prompts; `latent_ids` is empty for the frozen model."""

    config: SampleConfig
    model: PreTrainedModel
    template: Template
    latent_ids: list[list[int]]

    @classmethod
    def load(cls, config: SampleConfig) -> Sampler:
        """Raises UserError: the model or the run is wrong."""
        if config.run is not None:
            latent_model, template, trained = load_run(RunFolder(config.run), device=config.device,
                                                       precision=config.precision, attention=config.attention)
            return cls(config, latent_model.backbone, template, template.latent_ids(trained.latents))
        model, template = runtime.load_frozen(config.model, precision=config.precision, attention=config.attention,
                                              template=config.template)
        return cls(config, model.to(runtime.pick_device(config.device)), template, [])

    def router(self, xs: Sequence[str]) -> np.ndarray:
        """p(z|x) (G, K)."""
        return router_probabilities(self.model, self.template, [self.template.router_prompt(x) for x in xs], self.latent_ids,
                                    batch_tokens=self.config.batch_tokens)

    def complete(self, xs: Sequence[str], jobs: Sequence[tuple[int, int | None]], progress: Callable[[int], None] | None = None
                 ) -> tuple[list[str], list[bool]]:
        """The texts of (number of x, latent), empty where there was nothing but white space, and whether each came to its end.

        Raises:
            UserError: a prompt fills the context, or holds a tag.
        """
        config = self.config
        prompts = [self.template.prompt(xs[row], None if latent is None else self.latent_ids[latent]) for row, latent in jobs]
        context = runtime.context_length(self.model, config.max_length)
        room = context - np.asarray([len(prompt) for prompt in prompts])
        if room.min() < 1:
            x = xs[jobs[int(room.argmin())][0]]
            raise UserError(f"{config.data or '--x'}: the longest prompt, {x[:60]!r}, fills the context of {context} tokens")
        return generate(self.model, self.template, prompts, max_new_tokens=np.minimum(config.max_new_tokens or context, room),
                        temperature=config.temperature, seed=config.seed, batch_tokens=4 * config.batch_tokens, progress=progress)

    def compare(self, x: str) -> list[str]:
        """A line for each latent (of each of n completions): its probability under the router, and the text."""
        (router,) = self.router([x]) if self.latent_ids else ([1.0],)
        chosen = range(len(self.latent_ids)) if self.latent_ids else [None]
        jobs = [(0, latent) for latent in chosen for _ in range(self.config.n)]
        return [text if latent is None else f"z{latent}  {router[latent]:.2f}  {text}"
                for (_, latent), text in zip(jobs, self.complete([x], jobs)[0], strict=True)]


def sample(config: SampleConfig, say: Callable[[str], None], progress: Callable[[str, int], Any]) -> list[str]:
    """JSON lines with x, y and, from a run, the latent; each distinct prompt once, times n (times the latents).

    Raises:
        UserError: the model, the run, the latent or the data is wrong, or a prompt fills the context.
    """
    xs = [config.x] if config.x is not None else list(dict.fromkeys(
        e.x for e in stream_examples(config.data, x_field=config.x_field, y_field=None)))
    sampler = Sampler.load(config)
    chosen = _latents(config, sampler.latent_ids, lambda: sampler.router(xs), len(xs))
    jobs = [(row, latent) for row, latents in enumerate(chosen) for latent in latents]
    with progress("sampling", len(jobs)) as advance:
        texts, ended = sampler.complete(xs, jobs, advance)
    if cut := len(ended) - sum(ended):
        say(f"{cut:,} of {len(texts):,} completions have no end within the tokens that they may have (--max-new-tokens, or the context)")
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
