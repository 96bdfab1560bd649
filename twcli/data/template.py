"""The prompt template: the text around x, the latent section and y. It is the tags, a chat
template, or a file with `{x}`, `{z}` and `{y}`.

In a chat template the latent section comes last in the assistant's header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twcli.data.chat import SUFFIX, ChatTemplate, Rendered, read_template_file
from twcli.data.example import Example
from twcli.errors import UserError

TAGS, CHAT, FILE, AUTO = "tags", "chat", "file", "auto"


@dataclass(frozen=True)
class Ending:
    """What ends y: a token, or where the template writes none, a text.

    Attributes:
        token: the supervised id that ends a completion.
        text: the supervised text that ends a completion where no token does.
        appended: whether the template ends y by nothing, so that `token` is added to it.
        after: what the template has after y, for `appended`.
    """

    token: int | None
    text: str = ""
    appended: bool = False
    after: str = ""


@dataclass(frozen=True)
class Template:
    """The text around x, the latent section and y.

    Attributes:
        name: "tags", "chat" or "file".
        text: the template with `{x}`, `{z}` and `{y}`; empty for a chat template.
        before_x, before_z, before_y: ids before x, between x and the section, between the section
            and y; empty for a chat template, but for `before_y` always.
        after_y: ids after y; the first is supervised, ends a completion and never results from
            text. Empty where `ending` is a text.
        ending: what ends y.
        chat: the chat template.
    """

    name: str
    text: str
    before_x: list[int]
    before_z: list[int]
    before_y: list[int]
    after_y: list[int]
    ending: Ending
    chat: ChatTemplate | None = None

    @property
    def parts(self) -> list[str]:
        """The texts before x, between x and the section, between the section and y, after y."""
        return re.split(r"\{[xzy]\}", self.text)

    def render(self, example: Example) -> Rendered:
        """The record in a template file, the text between the section and y in the target."""
        before_x, before_z, before_y, after_y = self.parts
        prompt = before_x + example.x + before_z
        rest = before_y + example.y + after_y
        x_start = len(before_x)
        return Rendered(prompt, rest, x_start, x_start + len(example.x))


def read_template(
    name: str, tokenizer: Any, source: str, settings: Mapping[str, Any] | None = None
) -> Template | None:
    """The template that `--template` names: None for the tags, which `ExampleEncoder` knows.

    Args:
        name: "tags", "chat", a chat template in a `.jinja` file, or a text file with `{x}`, `{z}`
            and `{y}`, in this order.
        settings: defaults of a chat template's variables.

    Raises:
        UserError: the tokenizer has no chat template, or one that fails; the file is missing or
            lacks a placeholder.
    """
    if name == CHAT or name.endswith(SUFFIX):
        return _chat(name, tokenizer, source, settings)
    if settings:
        raise UserError(
            f"--chat-template-kwargs goes with --template chat or FILE{SUFFIX}, not with {name}"
        )
    if name == TAGS:
        return None
    text = read_template_file(name).removesuffix("\n")
    places = re.split(r"\{([xzy])\}", text)
    if places[1::2] != ["x", "z", "y"]:
        raise UserError(f"{name}: a template holds {{x}}, {{z}} and {{y}} once each, in this order")
    before_x, before_z, before_y, after_y = (
        tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
        for part in places[::2]
    )
    appended = not after_y
    if appended and tokenizer.eos_token_id is not None:
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
    ending = Ending(after_y[0], appended=appended, after=places[-1])
    return Template(FILE, text, before_x, before_z, before_y, after_y, ending)


def _chat(name: str, tokenizer: Any, source: str, settings: Mapping[str, Any] | None) -> Template:
    given = None if name == CHAT else read_template_file(name)
    chat = ChatTemplate(tokenizer, source if name == CHAT else name, given, settings)
    after = chat.ending
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    known = specials(tokenizer) - {tokenizer.unk_token_id}
    ends = [id for id in ids if id in known]
    if ends:
        ending = Ending(ends[0])
    elif after.strip():
        ending = Ending(None, text=after.strip())
    else:
        ending = Ending(tokenizer.eos_token_id, appended=True, after=after)
    closing = [] if ending.token is None else [ending.token]
    return Template(CHAT, "", [], [], [], closing, ending, chat)


def specials(tokenizer: Any) -> set[int]:
    """Ids that never result from text: special and added tokens, since text is tokenised with
    `split_special_tokens`.
    """
    return {
        *tokenizer.all_special_ids,
        *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
