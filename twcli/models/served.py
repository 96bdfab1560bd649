"""A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`, ...):
one prompt goes in, one completion comes out, many at once.

The `openai` package sends the requests. What passes, such as a lost connection, a full queue or an
error of the server, is tried again after a pause that doubles and varies, or that the server asks
for. Needs the extra `server`. The key, where a server wants one, is in OPENAI_API_KEY.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from twcli.errors import UserError, WorkFailed, first_line, how_to_resume

# 0.5, 1, 2, 4, 8 and 8 s, less up to a quarter: a server that is restarted is back by then, or not
TRIES = 6
SECONDS = 600.0  # that an answer may take, a long completion in a full queue included
FIRST_SECONDS = 10.0  # that the first answer may take
STORED = f"finished completions are kept; {how_to_resume()}"


@dataclass(frozen=True)
class Completion:
    """What a server wrote.

    Attributes:
        text: without the prompt.
        cut: whether the token limit ended it.
    """

    text: str
    cut: bool


@dataclass(frozen=True)
class Request:
    """A prompt.

    Attributes:
        messages: turns for the server's chat template; None where `prompt` is given.
        prompt: a text that is completed as it is.
        stop: text that ends a raw completion.
    """

    messages: list[dict[str, str]] | None = None
    prompt: str | None = None
    stop: str | None = None

    @property
    def shown(self) -> str:
        """The prompt, shortened, for messages."""
        text = self.prompt if self.messages is None else self.messages[-1]["content"]
        return repr((text or "")[:60])


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
        self.url, self.model = url, model
        base = url if parts.path.strip("/") else url.rstrip("/") + "/v1"
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
                chat = await self._client.chat.completions.create(
                    messages=request.messages,  # type: ignore[arg-type]
                    **settings,
                )
                choice = chat.choices[0]
                return Completion(choice.message.content or "", choice.finish_reason == "length")
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
        status, says = error.status_code, _said(error)
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


def _said(error: Any) -> str:
    """The status and what the server says, where servers put it."""
    body = error.body if isinstance(error.body, dict) else {}
    found = body.get("message") or body.get("detail") or body.get("error") or error.response.text
    return f"{error.status_code}: {' '.join(str(found).split())[:300]}"


def _reason(error: Exception) -> str:
    return first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
