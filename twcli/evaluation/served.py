"""`twcli eval --server`: a run's completions come from a server that has the exported folder; all
else is computed from the run itself.

Before anything is drawn the server is asked whether it has this run: a latent that does not exist
must be refused, prompts must be as long as those of training, and greedy completions must begin as
the run's own. What it draws is kept in the run's `served.jsonl`: an evaluation that was killed
resumes, and one with another judge draws nothing.

Shapes: P prompts, K latents.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from twcli.config.evaluate import EvalConfig
from twcli.data.example import Example
from twcli.errors import UserError
from twcli.evaluation.samples import Writer, prompts_hash
from twcli.models.generation import generate
from twcli.models.served import Completion, Request, Server, chat_request, complete_all, seeds_of

VERSION = 1
BLOCK = 512  # completions that are stored together; a kill loses at most those in progress
COMPARED = 4  # prompts whose completions are compared with the run's own
BEGINNING = 8  # tokens that are compared
NO_LATENT = "no such latent"


@dataclass(frozen=True)
class ServedWriter(Writer):
    """A run behind a server.

    Args:
        url, name: the server, and the run's name there.
    """

    url: str
    name: str

    def connect(self) -> Server:
        """A new connection."""
        return Server(self.url, self.name)

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
        """As `Writer.draw`; raises UserError and WorkFailed as `Server.complete` too."""
        requests = []
        lengths = [len(self.encoder.prompt(x, self.latents[0])) for x in xs]
        limits = np.minimum(self.free_context(xs, lengths, config.data), longest).tolist()
        for row, (x, counts, limit) in enumerate(zip(xs, counts_PK.tolist(), limits, strict=True)):
            seeds = iter(seeds_of(seed, row, sum(counts)))
            for k, count in enumerate(counts):
                request = chat_request(x, str(k))
                requests += [(request, next(seeds), limit) for _ in range(count)]
        found = iter(
            complete_all(
                self.connect,
                requests,
                temperature=temperature,
                concurrency=config.concurrency,
                progress=lambda one: progress(1, one.tokens),
            )
        )
        texts = []
        cut = 0
        for counts in counts_PK.tolist():
            texts.append([[next(found) for _ in range(count)] for count in counts])
            cut += sum(one.cut for part in texts[-1] for one in part)
        return [[[text_of(one) for one in part] for part in row] for row in texts], cut

    def fingerprint(self) -> dict[str, Any]:
        """As `Writer.fingerprint`, with the name that the server gives the model; not the address,
        since a server may move.
        """
        return super().fingerprint() | {"served": self.name}


def text_of(completion: Completion) -> str:
    """The text, calls of tools included; empty where it is only white space."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in completion.calls]
    parts = [completion.text, *calls] if completion.text else calls
    text = "\n\n".join(parts)
    return text if text.strip() else ""


def connected(
    config: EvalConfig, run: Writer, xs: Sequence[Example], say: Callable[[str], None]
) -> ServedWriter:
    """The run behind the server of `--server`.

    Args:
        run: the run itself.
        xs: distinct prompts, some of which are compared.

    Raises:
        UserError: the server has another model, reads other prompts, or refuses a request.
        WorkFailed: it does not answer.
    """
    assert config.server is not None
    url = config.server
    name = config.served_model

    async def asked() -> tuple[str, bool]:
        async with Server(url, name or "") as server:
            if name is None:
                server.model = await server.only_model()
            else:
                await server.check()
            probe = chat_request(xs[0], NO_LATENT)
            refuses = await server.refuses(probe)
            return server.model, refuses

    found, refuses = asyncio.run(asked())
    export = _how_to_export(config)
    if not refuses:
        raise UserError(
            f"--server {url}: {found} answers for a latent that does not exist, so it is no "
            f"exported run; {export}"
        )
    writer = ServedWriter(run.model, run.encoder, run.latents, run.max_length, url, found)
    say(f"{url}: {found}; {_check_same(config, run, writer, xs)}")
    return writer


def _how_to_export(config: EvalConfig) -> str:
    """What to serve, for a message."""
    return f"serve the folder that `twcli export --run {config.run} --to hf` writes"


def _check_same(
    config: EvalConfig, run: Writer, writer: ServedWriter, xs: Sequence[Example]
) -> str:
    """What of some prompts' greedy completions the server has in common with the run itself.

    Raises:
        UserError: it reads other prompts, or no completion begins as the run's own does.
        WorkFailed: it does not answer.
    """
    export = _how_to_export(config)
    rows = np.unique(np.linspace(0, len(xs) - 1, min(COMPARED, len(xs))).astype(int))
    some = [xs[row] for row in rows.tolist()]
    prompts = [run.encoder.prompt(x, latent) for x in some for latent in run.latents]
    requests: list[tuple[Request, int, int]] = [
        (chat_request(x, str(k)), 0, BEGINNING) for x in some for k in range(len(run.latents))
    ]
    theirs = complete_all(
        writer.connect,
        requests,
        temperature=0.0,
        concurrency=config.concurrency,
        progress=lambda _: None,
    )
    for one, prompt, x in zip(theirs, prompts, [x for x in some for _ in run.latents], strict=True):
        if one.prompt_tokens and one.prompt_tokens != len(prompt):
            raise UserError(
                f"--server {config.server}: reads the prompt {x.x[:60]!r} as "
                f"{one.prompt_tokens} tokens, and the run was trained on {len(prompt)}; {export}, "
                "and add no chat template or begin token of the server's"
            )
    own, _ = generate(
        run.model,
        run.encoder,
        prompts,
        max_new_tokens=BEGINNING,
        temperature=0.0,
        seed=config.seed,
        batch_tokens=4 * config.batch_tokens,
    )
    same = sum(_begin_alike(text_of(a), b) for a, b in zip(theirs, own, strict=True))
    line = f"{same} of {len(own)} greedy completions begin as the run's own"
    if not same:
        raise UserError(
            f"--server {config.server}: {line}, so {writer.name} is another model; {export}"
        )
    return line


def _begin_alike(a: str, b: str) -> bool:
    """Whether one text begins with the other; where one is empty, whether both are."""
    a, b = (text.strip().rstrip("\ufffd") for text in (a, b))
    if not a or not b:
        return a == b
    return a.startswith(b) or b.startswith(a)


@dataclass
class ServedCompletions:
    """One completion of each prompt under each latent, greedy, and one at temperature 1.

    Attributes:
        both: whether those at temperature 1 are drawn.
        longest, cut, tokens, seconds: as `samples.BlockSampler` has them.
    """

    config: EvalConfig
    writer: ServedWriter
    xs: list[Example]
    longest: int
    both: bool
    cut: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def per_prompt(self) -> int:
        """Completions of a prompt: a greedy one for each latent, and one at temperature 1 where
        these are drawn as well.
        """
        return len(self.writer.latents) * (1 + self.both)

    @property
    def block(self) -> int:
        """Prompts of a block, whatever --concurrency is: a block has random numbers of its own."""
        return -(-BLOCK // self.per_prompt)

    def lines(self, rows: range, advance: Callable[..., None]) -> Iterator[str]:
        """One line of JSON for each of these prompts."""
        xs = [self.xs[row] for row in rows]
        started = time.monotonic()

        def progress(count: int, tokens: int) -> None:
            self.tokens += tokens
            advance(count)

        draw = partial(
            self.writer.draw,
            xs,
            np.ones((len(xs), len(self.writer.latents)), np.int64),
            config=self.config,
            longest=self.longest,
            seed=int(np.random.SeedSequence([self.config.seed, rows.start]).generate_state(1)[0]),
            progress=progress,
        )
        drawn = {}
        for name, temperature in (("greedy", 0.0), ("drawn", 1.0))[: 1 + self.both]:
            drawn[name], cut = draw(temperature=temperature)
            self.cut += cut
        self.seconds += time.monotonic() - started
        for number, x in enumerate(xs):
            texts = {name: [ys[0] for ys in table[number]] for name, table in drawn.items()}
            yield json.dumps({"x": x.x, **texts}, ensure_ascii=False) + "\n"

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the completions depend on."""
        found = {
            "version": VERSION,
            "seed": self.config.seed,
            "both": self.both,
            "longest": self.longest,
            "block": self.block,
            "prompts": prompts_hash(self.xs),
        }
        for name, value in self.writer.fingerprint().items():
            found[f"run_{name}"] = value
        return found
