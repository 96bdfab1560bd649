"""`twcli eval --samples N`: what the frozen model and the run write for each prompt, drawn block by
block and kept in the run's `samples.jsonl`, so that an evaluation that was killed resumes and one
with another judge draws nothing.

The file's first line says what the samples belong to. Each further line is one prompt:

    x        the prompt
    frozen   temperature -> N completions of the frozen model
    router   p(z|x)
    latents  completions under each latent, as many as any arm needs

Arms of the run share these completions, so that what they differ in is how samples are divided.

Shapes: P prompts, K latents, N samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedModel

from twcli.config.evaluate import EvalConfig
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.errors import UserError, resumable
from twcli.evaluation.sampling import proportional_order
from twcli.models import baseline
from twcli.models.drawing import Request, draw
from twcli.models.generation import router_probabilities
from twcli.storage.shards import Shards, blocks, check_place, reporting

VERSION = 1
BLOCK = 1024  # completions that are stored together; a kill loses at most those in progress
SWEEP = (0.7, 1.0, 1.4, 2.0)  # temperatures of the frozen model, as multiples of --temperature


@dataclass(frozen=True)
class Writer:
    """A model that completes prompts; `latents` is empty for the frozen model."""

    model: PreTrainedModel
    encoder: ExampleEncoder
    latents: list[list[int]]
    max_length: int

    def prompt_and_sections(self, x: Example) -> tuple[list[int], np.ndarray]:
        """The ids that all completions of x follow, and (K, C) those that differ."""
        encoder = self.encoder
        whole = self.encoder.prompt(x)
        if not self.latents:
            return whole[:-1], np.asarray([whole[-1:]])
        before_y = len(encoder.template.before_y)
        length = len(whole) - before_y
        sections = [encoder.prompt(x, z)[length:] for z in self.latents]
        return whole[:length], np.asarray(sections)

    def free_context(self, xs: Sequence[Example], lengths: Sequence[int], data: str) -> np.ndarray:
        """Tokens that prompts of these lengths leave in the context.

        Args:
            lengths: (P,) tokens of each prompt.
            data: file name for the message.

        Returns:
            (P,) int64, each at least 1.

        Raises:
            UserError: a prompt leaves none.
        """
        free = self.max_length - np.asarray(lengths)
        if free.min() < 1:
            raise UserError(
                f"{data}: the prompt {xs[int(free.argmin())].x[:60]!r} fills the context of "
                f"{self.max_length} tokens"
            )
        return free

    def draw(
        self,
        xs: Sequence[Example],
        counts_PK: np.ndarray,
        *,
        config: EvalConfig,
        longest: int,
        temperature: float,
        seed: int,
        progress: Callable[[int, int], None],
    ) -> tuple[list[list[list[str]]], int]:
        """Completions of each prompt and latent, `counts_PK` of them, and how many were cut off."""
        parts = [self.prompt_and_sections(x) for x in xs]
        P, K = counts_PK.shape
        prompt_R = np.repeat(np.arange(P), counts_PK.sum(1))
        section_R = np.repeat(np.tile(np.arange(K), P), counts_PK.ravel())
        sections = np.stack([sections for _, sections in parts])
        lengths = [len(prompt) + sections.shape[2] for prompt, _ in parts]
        free = self.free_context(xs, lengths, config.data)
        limit_R = np.minimum(free, longest)[prompt_R]
        request = Request([prompt for prompt, _ in parts], sections, prompt_R, section_R, limit_R)
        texts, ended = draw(
            self.model,
            self.encoder,
            request,
            temperature=temperature,
            seed=seed,
            batch_tokens=4 * config.batch_tokens,
            progress=progress,
        )
        cells = iter(np.split(np.asarray(texts, object), np.cumsum(counts_PK.ravel())[:-1]))
        return [[next(cells).tolist() for _ in range(K)] for _ in range(P)], len(ended) - sum(ended)

    def fingerprint(self) -> dict[str, Any]:
        """What its completions depend on."""
        return {
            "weights": baseline.weights_hash(self.model),
            "tokenizer": self.encoder.tokenizer_hash(),
            "template": self.encoder.fingerprint(),
            "max_length": self.max_length,
        }


@dataclass
class Sampling:
    """Draws of all arms, block by block.

    Args:
        frozen: None where the frozen model is gone.
        longest: most tokens of a completion.
    """

    config: EvalConfig
    run: Writer
    frozen: Writer | None
    xs: list[Example]
    longest: int
    cut: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def samples(self) -> int:
        """N."""
        assert self.config.samples is not None
        return self.config.samples

    @property
    def temperatures(self) -> list[float]:
        """Those at which the frozen model is sampled, ascending: `SWEEP` times the run's, of which
        the best is shown.
        """
        of_run = self.config.temperature
        return [round(factor * of_run, 6) for factor in SWEEP]

    @property
    def per_prompt(self) -> int:
        """About how many completions a prompt gets, for the forecast of the time: those of the
        run's arms, and `samples` at each temperature of the original model.
        """
        of_run = 2 * self.samples  # its arms share most of their draws
        if self.frozen is None:
            return of_run
        return of_run + len(self.temperatures) * self.samples

    @property
    def block(self) -> int:
        """Prompts of a block."""
        return max(1, BLOCK // self.per_prompt)

    def lines(self, rows: range, advance: Callable[..., None]) -> Iterator[str]:
        """One line of JSON for each of these prompts; repeated calls give the same lines."""
        xs = [self.xs[row] for row in rows]
        started = time.monotonic()
        seeds = np.random.SeedSequence([self.config.seed, rows.start]).generate_state(16)
        done = 0
        whole = len(rows) * self.per_prompt

        def progress(count: int, tokens: int) -> None:
            nonlocal done
            self.tokens += tokens
            seconds = self.seconds + time.monotonic() - started
            speed = self.tokens / max(seconds, 1e-9)
            count = min(count, whole - done)  # the bar counts what was expected
            done += count
            note = f"{speed:,.0f} tokens/s" if self.tokens else ""
            advance(count, note)

        frozen: list[dict[str, list[str]]] = [{} for _ in xs]
        if self.frozen is not None:
            each = np.full((len(xs), 1), self.samples)
            for temperature, seed in zip(self.temperatures, seeds.tolist(), strict=False):
                texts = self._draw(self.frozen, xs, each, temperature, seed, progress)
                for found, (of_prompt,) in zip(frozen, texts, strict=True):
                    found[f"{temperature:g}"] = of_prompt
        router = router_probabilities(
            self.run.model,
            self.run.encoder,
            [self.run.encoder.router_prompt(x) for x in xs],
            self.run.latents,
            batch_tokens=self.config.batch_tokens,
        ).astype(np.float64)
        needed = self._needed(rows, router)
        temperature = self.config.temperature
        texts = self._draw(self.run, xs, needed, temperature, int(seeds[-1]), progress)
        advance(whole - done)
        self.seconds += time.monotonic() - started
        for x, old, p, new in zip(xs, frozen, router, texts, strict=True):
            line = {"x": x.x, "frozen": old, "router": p.tolist(), "latents": new}
            yield json.dumps(line, ensure_ascii=False) + "\n"

    def _draw(
        self,
        writer: Writer,
        xs: Sequence[Example],
        counts_PK: np.ndarray,
        temperature: float,
        seed: int,
        progress: Callable[[int, int], None],
    ) -> list[list[list[str]]]:
        """So many completions of each prompt under each latent; those cut off are counted."""
        texts, cut = writer.draw(
            xs,
            counts_PK,
            config=self.config,
            longest=self.longest,
            temperature=temperature,
            seed=seed,
            progress=progress,
        )
        self.cut += cut
        return texts

    def _needed(self, rows: range, router_PK: np.ndarray) -> np.ndarray:
        """(P, K) completions under each latent that the run's arms take, all from one drawing."""
        N = self.samples
        P, K = router_PK.shape
        even_PK = np.full((P, K), math.ceil(N / K))
        drawn = []
        for row, router_K in zip(rows, router_PK, strict=True):
            drawn.append(drawn_latents(self.config.seed, row, router_K, N))
        arms = [even_PK]
        for order_PN in (proportional_order(router_PK, N), np.stack(drawn)):
            arms.append((order_PN[:, :, None] == np.arange(K)).sum(1))
        return np.max(arms, axis=0)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the samples depend on."""
        names = ("samples", "temperature", "seed", "precision", "attention", "batch_tokens")
        found: dict[str, Any] = {
            "version": VERSION,
            **{name: getattr(self.config, name) for name in names},
            "longest": self.longest,
            "temperatures": self.temperatures,
            "device": self.run.model.device.type,
            "block": self.block,
            "prompts": prompts_hash(self.xs),
        }
        writers = {"run": self.run}
        if self.frozen is not None:
            writers["frozen"] = self.frozen
        for name, writer in writers.items():
            for key, value in writer.fingerprint().items():
                found[f"{name}_{key}"] = value
        return found


def prompts_hash(xs: Sequence[Example]) -> str:
    """sha256 over the prompts, in order."""
    joined = "\0".join(example.x for example in xs)
    digest = hashlib.sha256(joined.encode())
    return digest.hexdigest()


class BlockSampler(Protocol):
    """What `draw_all` draws and stores: a line for each prompt, by blocks.

    Attributes:
        cut: completions that were cut off, at `longest` tokens.
        tokens, seconds: drawn so far, and how long it took.
    """

    xs: list[Example]
    longest: int
    cut: int
    tokens: int
    seconds: float

    @property
    def per_prompt(self) -> int:
        """About how many completions a prompt gets."""

    @property
    def block(self) -> int:
        """Prompts of a block."""

    def lines(self, rows: range, advance: Callable[..., None]) -> Iterator[str]:
        """One line of JSON for each of these prompts."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the lines depend on."""


def drawn_latents(seed: int, row: int, router: np.ndarray, samples: int) -> np.ndarray:
    """(N,) latents that a prompt's router draws; its number and the seed fix them."""
    rng = np.random.default_rng([seed, 8, row])
    return rng.choice(len(router), samples, p=router / router.sum())


def draw_all(
    sampling: BlockSampler,
    target: Path,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
) -> list[dict[str, Any]]:
    """A parsed line for each prompt: from `target` if it holds these samples, else drawn and stored
    there, unless it cannot be written.

    Raises:
        UserError: a prompt fills the context, or another process draws the same samples.
        WorkFailed: the disk is full; finished blocks stay.
        Interrupted: a signal came; finished blocks stay.
    """
    header = {"fingerprint": sampling.fingerprint(), "prompts": len(sampling.xs)}
    shards = Shards(target, header, len(sampling.xs), what="sample", suffix=".jsonl")
    if stored := _stored(target, header):
        shards.remove_if_idle()
        say(f"{target}: these samples were drawn before; delete the file to draw them again")
        return stored
    try:
        check_place(target)
    except UserError as error:
        say(f"{error}; the samples are not kept")
        with progress("sampling", len(sampling.xs) * sampling.per_prompt) as advance:
            drawn = [
                json.loads(line)
                for rows in blocks(range(len(sampling.xs)), sampling.block)
                for line in sampling.lines(rows, advance)
            ]
    else:
        kept = f"; the samples of finished blocks of {sampling.block:,} prompts are kept"
        with resumable(kept):
            drawn = _draw_and_store(sampling, shards, say, progress)
    if sampling.tokens:
        say(
            f"sampled {sampling.tokens:,} tokens, {sampling.tokens / sampling.seconds:,.0f} a "
            "second"
        )
    if sampling.cut:
        say(
            f"{sampling.cut:,} completions were cut off at {sampling.longest} tokens "
            "(--max-new-tokens), or at the end of the context"
        )
    return drawn


def _stored(target: Path, header: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The prompts' lines, None where the file is not there, damaged or of something else."""
    with suppress(OSError, ValueError, TypeError):
        # not splitlines, which breaks at characters that JSON keeps
        first, *lines = target.read_text(encoding="utf-8").rstrip("\n").split("\n")
        found = json.loads(first)
        # as JSON has it: a tuple is a list
        same = found["header"] == json.loads(json.dumps(header))
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        if same and found["sha256"] == digest:
            return [json.loads(line) for line in lines]
    return None


def _draw_and_store(
    sampling: BlockSampler,
    shards: Shards,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
) -> list[dict[str, Any]]:
    """Draws the prompts that are missing, block by block, and returns the lines of all."""
    shards.open()
    try:
        for note in shards.notes():
            say(note)
        missing = shards.missing(sampling.block)
        left = sum(map(len, missing))
        if left < len(sampling.xs):
            done = len(sampling.xs) - left
            say(f"resuming: the samples of {done:,} of {len(sampling.xs):,} prompts are drawn")
        with progress("sampling", max(1, left) * sampling.per_prompt) as advance:
            for rows in missing:
                data = "".join(sampling.lines(rows, advance)).encode()
                with reporting(shards.target, "store samples"):
                    shards.add(rows, data)
        with shards.publishing("write the samples") as temp, open(temp, "wb") as file:
            text = b"".join(shards.all())
            digest = hashlib.sha256(text.removesuffix(b"\n")).hexdigest()
            first = json.dumps({"header": shards.header, "sha256": digest})
            file.write(first.encode() + b"\n" + text)
            file.flush()
            os.fsync(file.fileno())
    finally:
        shards.close()
    return [json.loads(line) for line in text.splitlines()]
