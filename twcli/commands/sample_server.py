"""`twcli sample --server`: completions of a model behind an OpenAI-compatible server.

Requests are on their way for several blocks of prompts at a time, so that the server stays busy
while the last completions of a block are written; a block is handed on when it is whole. Seeds
depend only on the prompt, so that a resumed file asks for what an uninterrupted one would.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twcli import signals
from twcli.config.inputs import AUTO
from twcli.config.sample import SampleConfig
from twcli.data.dataset import Prompts, completed_record
from twcli.data.example import Example
from twcli.errors import UserError
from twcli.models.served import LOOK_SECONDS, Request, Server, chat_request, end_all, seeds_of

BLOCK = 64  # completions per block; a kill loses the blocks that are not whole


@dataclass
class ServerDrawing:
    """Completes blocks of prompts as JSON lines, and counts what is reported at the end."""

    config: SampleConfig
    prompts: Prompts
    drawn: int = 0
    cut: int = 0
    empty: int = 0

    def __post_init__(self) -> None:
        template = self.config.template
        if template in ("tags", AUTO):
            self._raw = None
        else:
            self._raw = _raw_template(template)

    @property
    def per_prompt(self) -> int:
        """Number of completions per prompt."""
        return self.config.n

    @property
    def block(self) -> int:
        """Number of prompts per block."""
        return max(1, BLOCK // self.config.n)

    def blocks(
        self, missing: Sequence[range], progress: Callable[[int], None]
    ) -> Iterator[tuple[range, list[str]]]:
        """The lines of each of these ranges of prompts, as they become whole.

        Raises:
            UserError: the server refuses a request.
            WorkFailed: it does not answer, or fails.
        """
        # A signal ends the waiting, not the storing of a block. The event loop stands still while
        # the caller stores one.
        with signals.held() as interrupted, asyncio.Runner() as runner:
            stream = self._stream(missing, progress, interrupted)

            async def following() -> tuple[range, list[str]] | None:
                return await anext(stream, None)

            while (block := runner.run(following())) is not None:
                yield block

    async def _stream(
        self,
        missing: Sequence[range],
        progress: Callable[[int], None],
        interrupted: Callable[[], bool],
    ) -> AsyncIterator[tuple[range, list[str]]]:
        """Blocks of rows in the order in which they are complete, each with its lines.

        Args:
            progress: called with 1 after each completion.
            interrupted: whether to stop after what is under way.
        """
        config = self.config
        limit = asyncio.Semaphore(self.config.concurrency)
        # as many blocks as fill the connections, and one that fills up behind them
        at_once = -(-config.concurrency // (self.block * config.n)) + 1
        left = iter(missing)
        tasks: dict[asyncio.Task[list[str]], range] = {}
        assert config.server is not None and config.model is not None
        async with Server(config.server, config.model) as server:
            try:
                await server.check()
                while not interrupted():
                    while len(tasks) < at_once and (rows := next(left, None)) is not None:
                        work = self._lines(server, limit, rows, progress)
                        tasks[asyncio.create_task(work)] = rows
                    if not tasks:
                        return
                    done, _ = await asyncio.wait(
                        tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    # whole blocks first: what failed in another one ends the work
                    for task in sorted(done, key=lambda task: task.exception() is not None):
                        yield tasks.pop(task), task.result()
            finally:
                await end_all(tasks)

    async def _lines(
        self,
        server: Server,
        limit: asyncio.Semaphore,
        rows: range,
        progress: Callable[[int], None],
    ) -> list[str]:
        """The lines of the file for these rows, asked for all at once as far as `limit` permits."""
        config = self.config
        xs = self.prompts[rows]

        async def one(x: Example, seed: int) -> str:
            async with limit:
                answer = await server.complete(
                    self._request(x),
                    temperature=config.temperature,
                    max_new_tokens=config.max_new_tokens,
                    seed=seed,
                )
            self.drawn += 1
            self.cut += answer.cut
            progress(1)
            if not answer.text.strip() and not answer.calls:
                self.empty += 1
                return ""
            record = completed_record(x, answer.text, answer.calls)
            if config.latent is not None:
                number = config.latent.isdecimal()
                record["latent"] = int(config.latent) if number else config.latent
            return json.dumps(record, ensure_ascii=False) + "\n"

        work = [
            asyncio.create_task(one(x, seed))
            for row, x in zip(rows, xs, strict=True)
            for seed in seeds_of(config.seed, row, config.n)
        ]
        try:
            return [line for line in await asyncio.gather(*work) if line]
        finally:
            await end_all(work)

    def _request(self, x: Example) -> Request:
        """The request for a prompt: raw text where a template file is given, else turns for the
        server's chat template. Raises UserError for a conversation under a template file.
        """
        if self._raw is not None:
            before, after, stop = self._raw
            if x.messages is not None:
                raise UserError(
                    f"{self.config.data}: holds conversations, which the server's chat template "
                    "writes; leave --template out"
                )
            return Request(prompt=before + x.x + after, stop=stop)
        return chat_request(x, self.config.latent)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the completions depend on; not the address, since a server may move."""
        names = ("model", "n", "latent", "temperature", "seed", "max_new_tokens")
        return {name: getattr(self.config, name) for name in names} | {
            "served": True,
            "block": self.block,
            "template": None if self._raw is None else list(self._raw),
            "prompts": hashlib.sha256(self.prompts.digests.tobytes()).hexdigest(),
        }


def _raw_template(name: str) -> tuple[str, str, str]:
    """The texts before x, between x and y, and after y; the latent's place is left empty."""
    try:
        text = Path(name).read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"--template {name}: {reason}; with --server it is a text file with {{x}} and {{y}}"
        ) from error
    text = text.replace("{z}", "")
    before, x, rest = text.partition("{x}")
    after, y, stop = rest.partition("{y}")
    if not x or not y or "{x}" in rest or "{y}" in stop:
        raise UserError(f"{name}: a template holds {{x}} and {{y}} once each, in this order")
    return before, after, stop


def in_order(
    wanted: Sequence[range], blocks: Iterable[tuple[range, list[str]]]
) -> Iterator[tuple[range, list[str]]]:
    """The blocks in the order of `wanted`, each as soon as those before it are there."""
    early: dict[range, list[str]] = {}
    left = iter(wanted)
    following = next(left, None)
    for rows, lines in blocks:
        early[rows] = lines
        while following in early:
            yield following, early.pop(following)
            following = next(left, None)
