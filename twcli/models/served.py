"""A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`, ...):
one prompt goes in, one completion comes out, many at once.

The `openai` package sends the requests. What passes, such as a lost connection, a full queue or an
error of the server, is tried again after a pause that doubles and varies, or that the server asks
for. Needs the extra `server`. The key, where a server wants one, is in OPENAI_API_KEY.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from twcli import signals
from twcli.data.chat import content_text, prompt_turns
from twcli.data.example import Example
from twcli.data.latent_chat import LINE
from twcli.errors import UserError, WorkFailed, first_line, how_to_resume

# 0.5, 1, 2, 4, 8 and 8 s, less up to a quarter: a server that is restarted is back by then, or not
TRIES = 6
SECONDS = 600.0  # that an answer may take, a long completion in a full queue included
FIRST_SECONDS = 10.0  # that the first answer may take
LOOK_SECONDS = 0.2  # between looks whether a signal came
STORED = f"finished completions are kept; {how_to_resume()}"


@dataclass(frozen=True)
class Completion:
    """What a server wrote.

    Attributes:
        text: without the prompt.
        cut: whether the token limit ended it.
        calls: calls of tools that the server read in it, in the form of chat templates.
        prompt_tokens, tokens: of the prompt and of the completion; 0 where the server does not say.
    """

    text: str
    cut: bool
    calls: tuple[dict[str, Any], ...] = ()
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Request:
    """A prompt.

    Attributes:
        messages: turns for the server's chat template, as the OpenAI API writes them; None where
            `prompt` is given.
        tools: the functions that the turns may call.
        prompt: a text that is completed as it is.
        stop: text that ends a raw completion.
    """

    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None
    prompt: str | None = None
    stop: str | None = None

    @property
    def shown(self) -> str:
        """The prompt, or the last turn of a conversation, cut to 60 characters, for messages."""
        if self.messages is None:
            text = self.prompt
        else:
            text = self.messages[-1].get("content")
        begin = (text or "")[:60]
        return repr(begin)


def chat_request(example: Example, latent: str | None = None) -> Request:
    """The prompt of a record, every turn but the target; a latent of an exported model is named in
    the first line of a system message, which its chat template reads on every server.
    """
    messages = _api_turns(prompt_turns(example))
    if latent is not None:
        line = f"{LINE} {latent}"
        if messages[0]["role"] == "system":
            own = content_text(messages[0].get("content"))
            messages[0] = {**messages[0], "content": f"{line}\n{own}"}
        else:
            messages.insert(0, {"role": "system", "content": line})
    return Request(messages=messages, tools=example.tools or None)


def _api_turns(turns: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns as the API writes them: arguments of calls are JSON in a string, calls have ids, and
    results of tools name the call that they answer.
    """
    found = []
    unanswered = []
    count = 0
    for turn in turns:
        turn = {key: value for key, value in turn.items() if value is not None}
        if calls := turn.get("tool_calls"):
            turn["tool_calls"] = []
            for call in calls:
                function = call.get("function", call)
                arguments = function.get("arguments", {})
                if not isinstance(arguments, str):
                    arguments = json.dumps(arguments, ensure_ascii=False)
                # nine letters and digits: some templates take no other ids
                id = call.get("id") or f"call{count:05d}"
                named = {"name": function.get("name", ""), "arguments": arguments}
                turn["tool_calls"].append({"id": id, "type": "function", "function": named})
                unanswered.append(id)
                count += 1
        elif turn["role"] == "tool":
            if unanswered:
                answered = unanswered.pop(0)
            else:
                answered = f"call{count:05d}"
            turn.setdefault("tool_call_id", answered)
            if not isinstance(turn.get("content"), str):
                turn["content"] = json.dumps(turn.get("content"), ensure_ascii=False)
        found.append(turn)
    return found


def seeds_of(seed: int, row: int, count: int) -> list[int]:
    """A seed for each completion of a prompt, the same for the same (seed, row), below 2 ** 31,
    which servers take.

    Args:
        row: of the prompt in the data.
        count: completions.
    """
    sequence = np.random.SeedSequence([seed, row])
    state = sequence.generate_state(count)
    below = state >> 1
    return below.tolist()


class Server:
    """A connection to a server; an asynchronous context manager.

    Args:
        url: with or without `/v1`.
        model: the model's name at the server.

    Raises:
        UserError: `url` is none, or `openai` is missing.
    """

    def __init__(self, url: str, model: str) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError("--server: needs pip install 'twcli-cvae[server]'") from error
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"--server {url}: give a URL such as http://localhost:8000")
        self.url = url
        self.model = model
        if parts.path.strip("/"):
            base = url
        else:
            base = url.rstrip("/") + "/v1"
        self._client = openai.AsyncOpenAI(
            base_url=base,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            max_retries=TRIES,
            timeout=SECONDS,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def check(self) -> None:
        """Asks for the server's models once; any answer will do.

        Raises:
            WorkFailed: nothing answers.
        """
        import openai

        try:
            await self._client.with_options(max_retries=0, timeout=FIRST_SECONDS).models.list()
        except openai.APIConnectionError as error:
            raise WorkFailed(
                f"--server {self.url}: no server answers there ({_reason(error)}); start it, then "
                "run the same command again"
            ) from error
        except openai.OpenAIError:
            pass  # not every server has a list, and the first request says what is wrong

    async def only_model(self) -> str:
        """The name of the one model that the server has.

        Raises:
            UserError: it has several, or does not say.
            WorkFailed: nothing answers.
        """
        import openai

        await self.check()
        try:
            once = self._client.with_options(max_retries=0, timeout=FIRST_SECONDS)
            listed = await once.models.list()
            names = [str(one.id) for one in listed.data]
        except (openai.OpenAIError, AttributeError, TypeError):
            names = []
        if len(names) == 1:
            return names[0]
        if names:
            has = f"has {len(names)} models"
        else:
            has = "does not say which models it has"
        raise UserError(f"--server {self.url}: {has}; give --served-model with the name of the one")

    async def refuses(self, request: Request) -> bool:
        """Whether the server answers this request with an error. Raises WorkFailed where it does
        not answer.
        """
        import openai

        # An error is the answer that is hoped for, so the client must not try again. The connection
        # is a new one: a server that failed the request before may have closed it.
        try:
            async with Server(self.url, self.model) as fresh:
                once = fresh._client.with_options(max_retries=0)
                await once.chat.completions.create(
                    model=self.model,
                    messages=request.messages or [],  # type: ignore[arg-type]
                    max_tokens=1,
                    temperature=0,
                )
        except openai.APIConnectionError as error:
            raise WorkFailed(
                f"--server {self.url}: the server does not answer ({_reason(error)}); {STORED}"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403, 404, 429):
                raise self._refused(error, request) from error
            return True
        except openai.OpenAIError:
            return True
        return False

    async def complete(
        self,
        request: Request,
        *,
        temperature: float,
        max_new_tokens: int | None,
        seed: int,
    ) -> Completion:
        """One completion, from the whole distribution at `temperature`; 0 is greedy.

        Raises:
            UserError: the server refuses the request.
            WorkFailed: it does not answer, or fails, `TRIES` times.
        """
        import openai

        settings: dict[str, Any] = {
            "model": self.model,
            "temperature": temperature,
            "top_p": 1.0,
            "seed": seed,
        }
        if max_new_tokens is not None:
            settings["max_tokens"] = max_new_tokens
        try:
            if request.messages is not None:
                if request.tools:
                    settings["tools"] = request.tools
                chat = await self._client.chat.completions.create(
                    messages=request.messages,  # type: ignore[arg-type]
                    **settings,
                )
                choice = chat.choices[0]
                usage = chat.usage
                return Completion(
                    choice.message.content or "",
                    choice.finish_reason == "length",
                    tuple(_call(call) for call in choice.message.tool_calls or ()),
                    getattr(usage, "prompt_tokens", 0) or 0,
                    getattr(usage, "completion_tokens", 0) or 0,
                )
            if request.stop:
                settings["stop"] = request.stop
            answer = await self._client.completions.create(prompt=request.prompt, **settings)
            text = answer.choices[0].text
            if request.stop:  # some servers leave it in
                text = text.removesuffix(request.stop)
            return Completion(text, answer.choices[0].finish_reason == "length")
        except openai.APIConnectionError as error:
            raise WorkFailed(
                f"--server {self.url}: the server does not answer ({_reason(error)}); {STORED}"
            ) from error
        except openai.APIStatusError as error:
            raise self._refused(error, request) from error
        except (openai.OpenAIError, IndexError, TypeError, AttributeError) as error:
            raise WorkFailed(
                f"--server {self.url}: the answer is not a completion ({first_line(error)}); "
                f"{STORED}"
            ) from error

    def _refused(self, error: Any, request: Request) -> UserError | WorkFailed:
        """The error for a refused request: the user's mistake, or the server's failure."""
        status = error.status_code
        says = _said(error)
        if status in (401, 403):
            return UserError(
                f"--server {self.url}: refuses the key ({status}); put a valid one into "
                "OPENAI_API_KEY"
            )
        if status >= 500 or status in (408, 409, 429):
            return WorkFailed(f"--server {self.url}: fails ({says}); {STORED}")
        if status == 404:
            return UserError(
                f"--server {self.url}: has no model {self.model}, or not this kind of completion "
                f"({says})"
            )
        return UserError(
            f"--server {self.url}: refuses the request for the prompt {request.shown} ({says})"
        )


def _call(call: Any) -> dict[str, Any]:
    """A call of a tool in the form of chat templates: its arguments are an object."""
    arguments = call.function.arguments
    try:
        read = json.loads(arguments)
    except (TypeError, ValueError):
        read = arguments
    function = {"name": call.function.name, "arguments": read}
    return {"type": "function", "function": function}


def complete_all(
    connect: Callable[[], Server],
    requests: Sequence[tuple[Request, int, int]],
    *,
    temperature: float,
    concurrency: int,
    progress: Callable[[Completion], None],
) -> list[Completion]:
    """The completions of requests, at most `concurrency` of them under way at once.

    Args:
        connect: makes the connection.
        requests: each with its seed and its most tokens.
        progress: called with each completion as it comes.

    Raises:
        UserError, WorkFailed: as `Server.complete`; the rest is given up.
        KeyboardInterrupt: a signal came.
    """
    # a signal ends the waiting
    with signals.held() as interrupted, asyncio.Runner() as runner:
        return runner.run(_all(connect, requests, temperature, concurrency, progress, interrupted))


async def _all(
    connect: Callable[[], Server],
    requests: Sequence[tuple[Request, int, int]],
    temperature: float,
    concurrency: int,
    progress: Callable[[Completion], None],
    interrupted: Callable[[], bool],
) -> list[Completion]:
    """Completions in the order of the requests, at most `concurrency` requests at once."""
    limit = asyncio.Semaphore(concurrency)
    async with connect() as server:

        async def one(request: Request, seed: int, longest: int) -> Completion:
            async with limit:
                found = await server.complete(
                    request, temperature=temperature, max_new_tokens=longest, seed=seed
                )
            progress(found)
            return found

        tasks = [asyncio.create_task(one(*request)) for request in requests]
        waiting = set(tasks)
        try:
            while waiting and not interrupted():
                done, waiting = await asyncio.wait(
                    waiting, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                )
                for task in done:
                    task.result()
            if not waiting:
                return [task.result() for task in tasks]
            return []
        finally:
            await end_all(tasks)


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels the tasks that still run, and waits until all have ended; errors are dropped."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _said(error: Any) -> str:
    """The status and what the server says, where servers put it."""
    body = error.body if isinstance(error.body, dict) else {}
    found = body.get("message") or body.get("detail") or body.get("error")
    if not found:
        found = error.response.text
    words = str(found).split()
    in_one_line = " ".join(words)[:300]
    return f"{error.status_code}: {in_one_line}"


def _reason(error: Exception) -> str:
    """Why a connection failed, in a line."""
    if isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)
