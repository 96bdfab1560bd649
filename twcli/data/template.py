"""The prompt template, i.e. the fixed tokens around x, the latent section and y: the tags, a
model's chat template, or a file with `{x}`, `{z}` and `{y}`.

In a chat template the latent section comes last in the assistant's header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twcli.errors import UserError

CHAT = "chat"
# The date given to chat templates, so that a template gives the same tokens every day; the default
# of Llama 3's template.
TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


@dataclass(frozen=True)
class Template:
    """The fixed tokens around x, the latent section and y.

    Attributes:
        name: "tags", "chat" or "file".
        text: the template with `{x}`, `{z}` and `{y}`.
        head, middle, lead: ids before x, between x and the section, between the section and y.
        close: ids after y, at least one; the first is supervised, ends a completion and never
            results from text.
    """

    name: str
    text: str
    before_x: list[int]
    before_z: list[int]
    before_y: list[int]
    after_y: list[int]


def read_template(name: str, tokenizer: Any, source: str) -> Template | None:
    """The frame that `--template` names: None for the tags, which `ExampleEncoder` knows.

    Args:
        name: "tags", "chat", or a text file with `{x}`, `{z}` and `{y}`, in this order.

    Raises:
        UserError: the tokenizer has no chat template, or one that changes the texts; the file is
            missing or lacks a placeholder.
    """
    if name == "tags":
        return None
    text = _chat_text(tokenizer, source) if name == CHAT else _file_text(name)
    places = re.split(r"\{([xzy])\}", text)
    if places[1::2] != ["x", "z", "y"]:
        raise UserError(f"{name}: a template holds {{x}}, {{z}} and {{y}} once each, in this order")
    before_x, before_z, before_y, after_y = (
        tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
        for part in places[::2]
    )
    if not after_y and tokenizer.eos_token_id is not None:
        after_y = [tokenizer.eos_token_id]
    if not before_x or not (before_z or before_y):
        raise UserError(
            f"{name}: text is needed before {{x}} and between {{x}} and {{y}}, to separate x from y"
        )
    if not after_y or after_y[0] not in specials(tokenizer):
        raise UserError(
            f"{name}: a special token such as {tokenizer.eos_token or '<eos>'} must follow {{y}}: "
            "it ends the completion"
        )
    return Template(CHAT if name == CHAT else "file", text, before_x, before_z, before_y, after_y)


def _chat_text(tokenizer: Any, source: str) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            f"{source}: the tokenizer has no chat template; give --template FILE with {{x}}, "
            f"{{z}} and {{y}}"
        )
    turns = [{"role": "user", "content": "TWCLI-X"}, {"role": "assistant", "content": "TWCLI-Y"}]
    try:
        text: str = tokenizer.apply_chat_template(
            turns, tokenize=False, chat_template=TODAY + tokenizer.get_chat_template()
        )
    except Exception as error:  # a template is a program and may raise any error
        raise UserError(
            f"{source}: its chat template fails on a user and an assistant turn: {str(error)[:200]}"
        ) from error
    if text.count("TWCLI-X") != 1 or text.count("TWCLI-Y") != 1:
        raise UserError(
            f"{source}: its chat template does not show both turns as they are; "
            "give --template FILE"
        )
    return text.replace("TWCLI-X", "{x}").replace("TWCLI-Y", "{z}{y}")


def _file_text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"--template {name}: {reason}; give tags, chat or a text file with {{x}}, "
            f"{{z}} and {{y}}"
        ) from error


def specials(tokenizer: Any) -> set[int]:
    """Ids that never result from text: special and added tokens, since text is tokenised with
    `split_special_tokens`.
    """
    return {
        *tokenizer.all_special_ids,
        *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
