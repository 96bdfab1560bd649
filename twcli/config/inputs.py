"""Options that several commands share: the records, the text around them, the model and how it
computes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from twcli.config.options import INPUTS, RESOURCES, STRATEGIES, Config, option
from twcli.errors import UserError

AUTO = "auto"
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")
MODEL_HELP = "Entangled model: a Hugging Face folder, a GGUF file or a hub name."
# What else a chat template or `apply_chat_template` knows by these names.
TAKEN_VARIABLES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "latent",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
DATA_HELP = (
    "Records: a JSONL, JSON, CSV, TSV or Parquet file (or several, separated by commas, or a glob "
    "pattern), a `datasets` folder, or a hub name as NAME:CONFIG:SPLIT."
)
EMPTY = ("error", "skip")
EMPTY_HELP = "Records without text in prompt or completion: stop, or leave them out and count them."
TOO_LONG = ("error", "skip", "truncate-left")  # what `data.long_rows` does
FORMAT_HELP = "Format of the records; auto: recognised from the first ones."
# What `data.formats` reads.
FORMATS = (
    AUTO,
    "fields",
    "preference",
    "completions",
    "messages",
    "sharegpt",
    "prompt-completion",
    "alpaca",
    "question-answer",
)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where the records are and what their fields are called."""

    data: str = option(group=INPUTS, help=DATA_HELP, path=True)
    format: str = option(AUTO, group=INPUTS, rare=True, help=FORMAT_HELP, choices=FORMATS)
    x_field: str = option("x", group=INPUTS, rare=True, help="Field that holds the prompt.")
    y_field: str = option("y", group=INPUTS, rare=True, help="Field that holds the completion.")
    each_turn: bool = option(
        False,
        group=INPUTS,
        rare=True,
        help="Make every assistant turn of a conversation an example, not only the last one.",
    )
    empty: str = option(EMPTY[0], group=INPUTS, rare=True, help=EMPTY_HELP, choices=EMPTY)

    @property
    def fields(self) -> dict[str, Any]:
        """What `data.dataset.stream_examples` needs to know of the records."""
        names = ("format", "x_field", "y_field", "each_turn", "empty")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Config):
    """Where and in which precision the model runs."""

    device: str = option("auto", group=RESOURCES, help="Device to run on.", choices=DEVICES)
    precision: str = option(
        "fp32",
        group=RESOURCES,
        help="Precision of the arithmetic. Losses and trained weights stay float32.",
        choices=PRECISIONS,
    )
    attention: str = option(
        "sdpa",
        group=RESOURCES,
        rare=True,
        help="Attention implementation of transformers.",
        choices=ATTENTION,
    )
    max_length: int | None = option(
        None,
        group=INPUTS,
        rare=True,
        help="Maximum sequence length in tokens; default: the model's context.",
        minimum=8,
    )


@dataclass(frozen=True, kw_only=True)
class BatchConfig(Config):
    """How much goes through the model at a time."""

    batch_tokens: int = option(
        4096, group=RESOURCES, help="Maximum tokens per batch, padding included.", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Config):
    """How a server of another process is asked."""

    concurrency: int = option(
        32,
        group=RESOURCES,
        rare=True,
        help="Concurrent requests to --server.",
        minimum=1,
        maximum=1000,
    )


@dataclass(frozen=True, kw_only=True)
class TemplateConfig(Config):
    """The text around x, the latent and y."""

    template: str = option(
        AUTO,
        group=INPUTS,
        help=(
            "Text around x and y: `tags`, `chat` (the tokenizer's chat template), another chat "
            "template in a .jinja file, or a text file with {x}, {z} and {y}; auto: chat where the "
            "tokenizer has a chat template and not the tags."
        ),
    )
    chat_template_kwargs: str | None = option(
        None,
        group=INPUTS,
        rare=True,
        help=(
            "Variables of the chat template, as a JSON object: "
            """'{"enable_thinking": false}'; the run keeps them as defaults."""
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.chat_settings:
            return
        if self.template not in ("chat", AUTO) and not self.template.endswith(".jinja"):
            raise UserError(
                "--chat-template-kwargs: are variables of a chat template; "
                "give --template chat or leave them out"
            )

    @property
    def chat_settings(self) -> dict[str, Any]:
        """The variables of the chat template.

        Raises:
            UserError: not a JSON object, or a name that is not the template's.
        """
        text = self.chat_template_kwargs
        if text is None:
            return {}
        example = """write e.g. '{"enable_thinking": false}'"""
        try:
            settings = json.loads(text)
        except ValueError as error:
            raise UserError(
                f"--chat-template-kwargs {text[:60]}: not JSON ({error}); {example}"
            ) from error
        if not isinstance(settings, dict):
            raise UserError(f"--chat-template-kwargs {text[:60]}: must be a JSON object; {example}")
        for name in settings:
            if not name.isidentifier() or name in TAKEN_VARIABLES:
                raise UserError(
                    f"--chat-template-kwargs: {name!r} cannot be set; "
                    "give variables that the chat template asks for"
                )
        return settings


@dataclass(frozen=True, kw_only=True)
class InputsConfig(DataConfig, TemplateConfig, ComputeConfig):
    """A frozen model and the records that it scores."""

    retired: ClassVar[dict[str, str]] = {
        "strategy_field": "is gone: only `twcli eval` reads the strategies; leave it out",
    }

    model: str = option(group=INPUTS, help=MODEL_HELP, path=True)
    too_long: str = option(
        TOO_LONG[0],
        group=INPUTS,
        rare=True,
        help=(
            "Rows longer than the model's context: stop, leave them out, or drop the beginning of "
            "x. Give every command the same choice."
        ),
        choices=TOO_LONG,
    )

    latent_tokens: int = option(
        1,
        group=STRATEGIES,
        rare=True,
        help=(
            "Vocabulary tokens per latent; more give each latent more capacity. They count towards "
            "the length of a row, so give every command the same number."
        ),
        minimum=1,
        maximum=64,
    )

    def inputs(self) -> dict[str, Any]:
        """The arguments of `models.inputs.open_inputs`."""
        names = (
            "model",
            "data",
            "template",
            "precision",
            "attention",
            "max_length",
            "too_long",
            "latent_tokens",
        )
        values = {name: getattr(self, name) for name in names} | self.fields
        return values | {"chat_settings": self.chat_settings}
