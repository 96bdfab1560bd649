"""`twcli sample`: completions of the frozen model, of a run under one latent, all latents or the
router's choice, or of a model behind a server.

Prompts are completed block by block. With `--out` each finished block is stored, and the same
command resumes after an interruption. A block's samples depend only on the seed and the block, so
the resumed file is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from twcli.commands.sample_server import ServerDrawing, in_order
from twcli.config.phases import DRAW, Phases
from twcli.config.sample import SampleConfig
from twcli.data.dataset import Examples, Prompts, completed_record, stream_examples
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.errors import UserError, resumable
from twcli.models import baseline, loading, runtime
from twcli.models.building import load_run
from twcli.models.generation import generate, router_probabilities, why_not_cached
from twcli.storage.run_folder import RunFolder
from twcli.storage.shards import Shards, blocks, check_place, reporting

BLOCK = 512  # completions per block; a kill loses at most the block in progress


@dataclass(frozen=True)
class Sampler:
    """A loaded model that completes prompts; `latent_ids` is empty for the frozen model."""

    config: SampleConfig
    model: PreTrainedModel
    encoder: ExampleEncoder
    latent_ids: list[list[int]]

    @classmethod
    def load(cls, config: SampleConfig, say: runtime.Say = runtime.silent) -> Sampler:
        """`say` as in `loading.load_model`.

        Raises:
            UserError: the model, the run or the latent is wrong.
        """
        if config.run is not None:
            latent_model, encoder, trained = load_run(
                RunFolder(config.run),
                device=config.device,
                precision=config.precision,
                attention=config.attention,
                say=say,
            )
            latent = config.latent or ""
            latents = trained.resolved_latents
            if latent.isdecimal() and int(latent) >= latents:
                raise UserError(f"--latent {latent}: the run has the latents 0 to {latents - 1}")
            return cls(config, latent_model.backbone, encoder, encoder.latent_ids(latents))
        assert config.model is not None
        model, encoder = loading.load_frozen(
            config.model,
            precision=config.precision,
            attention=config.attention,
            template=config.template,
            say=say,
            chat_settings=config.chat_settings,
        )
        return cls(config, model.to(runtime.pick_device(config.device)), encoder, [])

    def router(self, xs: Sequence[Example]) -> np.ndarray:
        """The router p(z|x) (G, K)."""
        return router_probabilities(
            self.model,
            self.encoder,
            [self.encoder.router_prompt(x) for x in xs],
            self.latent_ids,
            batch_tokens=self.config.batch_tokens,
        )

    @property
    def per_prompt(self) -> int:
        """Number of completions per prompt."""
        if self.config.latent == "all":
            latents = len(self.latent_ids)
        else:
            latents = 1
        return self.config.n * latents

    def ids_and_limits(
        self, xs: Sequence[Example], requests: Sequence[tuple[int, int | None]]
    ) -> tuple[list[list[int]], np.ndarray]:
        """The ids of the prompts of `requests`, pairs of (index of x, latent), and tokens that each
        leaves free in the context.

        Raises:
            UserError: a prompt fills the context, or contains a tag.
        """
        prompts = [
            self.encoder.prompt(xs[row], None if latent is None else self.latent_ids[latent])
            for row, latent in requests
        ]
        context = loading.context_length(self.model, self.config.max_length)
        limits = context - np.asarray([len(prompt) for prompt in prompts])
        if limits.min() < 1:
            x = xs[requests[int(limits.argmin())][0]].x
            raise UserError(
                f"{self.config.data or '--x'}: the prompt {x[:60]!r} fills the context of "
                f"{context} tokens"
            )
        return prompts, limits

    def complete(
        self,
        xs: Sequence[Example],
        requests: Sequence[tuple[int, int | None]],
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[str], list[bool]]:
        """The completions of `requests`, empty if only white space was generated, and whether each
        ended by itself.

        Raises:
            UserError: as `ids_and_limits`.
        """
        config = self.config
        prompts, limits = self.ids_and_limits(xs, requests)
        if config.max_new_tokens is None:
            most = limits
        else:
            most = np.minimum(config.max_new_tokens, limits)
        return generate(
            self.model,
            self.encoder,
            prompts,
            max_new_tokens=most,
            temperature=config.temperature,
            seed=seed,
            batch_tokens=4 * config.batch_tokens,
            progress=progress,
        )

    def compare(self, x: str) -> list[str]:
        """A line for each of n completions under each latent: its probability under the router, and
        the text.
        """
        xs = [Example(x, "")]
        if self.latent_ids:
            (router,) = self.router(xs)
            chosen: list[int | None] = [*range(len(self.latent_ids))]
        else:
            router = [1.0]
            chosen = [None]
        requests = [(0, latent) for latent in chosen for _ in range(self.config.n)]
        texts, *_ = self.complete(xs, requests, self.config.seed)
        lines = []
        for (_, latent), text in zip(requests, texts, strict=True):
            if latent is None:
                probability = ""
            else:
                probability = f"z{latent}  {router[latent]:.2f}  "
            lines.append(probability + text)
        return lines

    def latents(self, xs: Sequence[Example], seed: int) -> list[list[int | None]]:
        """For each prompt the latents of its completions; [None] x n for the frozen model."""
        n = self.config.n
        latent = self.config.latent
        if not self.latent_ids:
            return [[None] * n] * len(xs)
        if latent == "all":
            return [[k for k in range(len(self.latent_ids)) for _ in range(n)]] * len(xs)
        if latent in (None, "router"):
            rng = np.random.default_rng([seed, 3])
            drawn = []
            for p_K in self.router(xs).astype(np.float64):
                drawn.append(rng.choice(len(p_K), n, p=p_K / p_K.sum()).tolist())
            return drawn
        return [[int(latent)] * n] * len(xs)


@dataclass
class Drawing:
    """Completes blocks of prompts as JSON lines, and counts what is reported at the end."""

    sampler: Sampler
    prompts: Prompts
    drawn: int = 0
    cut: int = 0
    empty: int = 0

    @property
    def per_prompt(self) -> int:
        """Number of completions per prompt."""
        return self.sampler.per_prompt

    @property
    def block(self) -> int:
        """Number of prompts per block."""
        return max(1, BLOCK // self.per_prompt)

    def check(self, say: runtime.Say) -> None:
        """Raises UserError if a prompt fills the context, before any prompt is completed; says why
        the model cannot use a cache, if so.
        """
        latent = 0 if self.sampler.latent_ids else None
        for rows in blocks(range(len(self.prompts)), BLOCK):
            xs = self.prompts[rows]
            ids, _ = self.sampler.ids_and_limits(xs, [(row, latent) for row in range(len(xs))])
        if reason := why_not_cached(self.sampler.model, self.sampler.encoder, ids):
            say(f"without a KV cache, so that each new token takes a pass over its row: {reason}")

    def blocks(
        self, missing: Sequence[range], progress: Callable[[int], None]
    ) -> Iterator[tuple[range, list[str]]]:
        """The lines of each of these ranges of prompts, in their order."""
        for rows in missing:
            yield rows, list(self.lines(rows, progress))

    def lines(self, rows: range, progress: Callable[[int], None]) -> Iterator[str]:
        """The completions of these prompts, one line of JSON each; repeated calls give the same
        lines.
        """
        xs = self.prompts[rows]
        seed = int(
            np.random.SeedSequence([self.sampler.config.seed, rows.start]).generate_state(1)[0]
        )
        requests = [
            (row, latent)
            for row, latents in enumerate(self.sampler.latents(xs, seed))
            for latent in latents
        ]
        texts, ended = self.sampler.complete(xs, requests, seed, progress)
        self.drawn += len(texts)
        self.cut += len(ended) - sum(ended)
        self.empty += sum(not text for text in texts)
        for (row, latent), text in zip(requests, texts, strict=True):
            if text:
                yield (
                    json.dumps(
                        completed_record(xs[row], text)
                        | ({} if latent is None else {"latent": latent}),
                        ensure_ascii=False,
                    )
                    + "\n"
                )

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the completions depend on."""
        config = self.sampler.config
        model = self.sampler.model
        encoder = self.sampler.encoder
        names = (
            "n",
            "latent",
            "temperature",
            "seed",
            "max_new_tokens",
            "max_length",
            "batch_tokens",
            "precision",
            "attention",
        )
        return {name: getattr(config, name) for name in names} | {
            "device": model.device.type,
            "block": self.block,
            "weights": baseline.weights_hash(model),
            "tokenizer": encoder.tokenizer_hash(),
            "template": encoder.fingerprint(),
            "prompts": hashlib.sha256(self.prompts.digests.tobytes()).hexdigest(),
        }


def sample(
    config: SampleConfig,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
    show: Callable[[str], None],
    phases: Phases | None = None,
    records: Examples | None = None,
) -> None:
    """Writes JSON lines with x, y and, from a run, the latent: n completions (per latent) of each
    distinct prompt.

    Args:
        show: called with each line of a finished block, if there is no `config.out`.
        phases, records: as of `precompute`.

    Raises:
        UserError: the model, the run, the latent, the data or the output is wrong, or a
            prompt fills the context.
        WorkFailed: the disk is full or the server fails; finished blocks stay.
        Interrupted: a signal came; finished blocks stay.
    """
    if config.out is None:
        out = None
    else:
        out = Path(config.out)
    if out is not None:
        check_place(out)
        if not Shards.folder_of(out).exists():
            _refuse_existing(out, config)
    # first, so that errors in the prompts are reported before a model is loaded
    prompts = _prompts(config, records, say)
    drawing: Drawing | ServerDrawing
    if config.server is not None:
        drawing = ServerDrawing(config, prompts)
    else:
        drawing = Drawing(Sampler.load(config, say), prompts)
        drawing.check(say)
    if phases is not None:
        phases.begin(DRAW, config.server or "")
    if out is None:
        every = blocks(range(len(drawing.prompts)), drawing.block)
        with progress("completions", len(drawing.prompts) * drawing.per_prompt) as advance:
            for _, lines in in_order(every, drawing.blocks(every, advance)):
                for line in lines:
                    show(line)
    else:
        with resumable(f"; finished blocks of {drawing.block:,} prompts are kept"):
            _store(out, drawing, config, say, progress)
    _say_what_is_missing(drawing, say)


def _prompts(config: SampleConfig, records: Examples | None, say: Callable[[str], None]) -> Prompts:
    """The distinct prompts of `--x`, of the records that were read already, or of `--data`."""
    if config.x is not None:
        return Prompts.of([Example(config.x, "")])
    if records is not None:
        return Prompts.of(records)
    assert config.data is not None
    examples = stream_examples(
        config.data,
        format=config.format,
        x_field=config.x_field,
        y_field=None,
        empty=config.empty,
        trained=None if config.run is None else RunFolder(config.run).read_fields(),
    )
    prompts = Prompts.of(examples)
    say(examples.summary())
    return prompts


def _say_what_is_missing(drawing: Drawing | ServerDrawing, say: Callable[[str], None]) -> None:
    """How many completions were cut off, or left out."""
    if drawing.cut:
        say(
            f"{drawing.cut:,} of {drawing.drawn:,} completions were cut off at the token limit "
            "(--max-new-tokens, or the context)"
        )
    if drawing.empty:
        asked = len(drawing.prompts) * drawing.per_prompt
        say(f"{drawing.empty:,} of {asked:,} completions were empty and are omitted")


def _refuse_existing(out: Path, config: SampleConfig) -> None:
    """Raises UserError where a file would be replaced that `--overwrite` does not allow to be
    replaced.
    """
    if out.exists() and not config.overwrite:
        raise UserError(f"{out}: exists; --overwrite replaces it")


def _store(
    out: Path,
    drawing: Drawing | ServerDrawing,
    config: SampleConfig,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
) -> None:
    """Draws what is missing and writes `out`, once all of it is there."""
    shards = Shards(
        out,
        {"fingerprint": drawing.fingerprint()},
        len(drawing.prompts),
        what="sample",
        suffix=".jsonl",
    )
    count = 0
    shards.open()
    try:
        for note in shards.notes():
            say(note)
        if shards.published:
            shards.remove()
            return say(f"{out}: already complete")
        missing = shards.missing(drawing.block)
        if missing:  # otherwise an earlier call was killed just before or after it wrote the file
            _refuse_existing(out, config)
        left = sum(map(len, missing))
        if left < len(drawing.prompts):
            say(
                f"resuming: {len(drawing.prompts) - left:,} of {len(drawing.prompts):,} prompts "
                "are done"
            )
        with progress("completions", left * drawing.per_prompt) as advance:
            for rows, lines in drawing.blocks(missing, advance):
                with reporting(out, "store completions"):
                    shards.add(rows, "".join(lines).encode())
        with shards.publishing("write the completions") as temp, open(temp, "wb") as file:
            for data in shards.all():
                file.write(data)
                count += data.count(b"\n")
            file.flush()
            os.fsync(file.fileno())
    finally:
        shards.close()
    say(f"{out}: {count:,} completions")
    # of all calls: an earlier one that was ended could not report its own
    drawing.empty = len(drawing.prompts) * drawing.per_prompt - count
