"""Chat templates: what a tokenizer's Jinja program makes of a conversation.

A conversation is rendered twice, as inference does it: its prompt (every turn but the last, with
`add_generation_prompt=True`) and the whole. What the whole adds to the prompt is the target.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from twcli.data.example import Example
from twcli.data.latent_chat import literal, open_ended, without_latents
from twcli.errors import UserError

# Templates that ask for the date get 26 July 2024, the default of Llama 3's template: they would
# give other tokens every day. The directives are those of Python's strftime in the C locale.
DATE = {
    "a": "Fri", "A": "Friday", "w": "5", "u": "5", "d": "26", "e": "26", "b": "Jul", "h": "Jul",
    "B": "July", "m": "07", "y": "24", "Y": "2024", "G": "2024", "H": "00", "I": "12", "p": "AM",
    "M": "00", "S": "00", "f": "000000", "z": "", "Z": "", "j": "208", "U": "29", "W": "30",
    "V": "30", "c": "Fri Jul 26 00:00:00 2024", "x": "07/26/24", "X": "00:00:00",
    "D": "07/26/24", "F": "2024-07-26", "T": "00:00:00", "R": "00:00", "-d": "26", "-m": "7",
    "-H": "0", "-I": "12", "-M": "0", "-S": "0",
}  # fmt: skip
LONGEST_OPENING = 40  # characters of an answer that a generation prompt opens it with
DATE_MACRO = "{% macro strftime_now(format) %}{{ format"
# Before a template that shows lists of parts alone: turns that are texts become such lists.
TEXTS_AS_PARTS = (
    "{%- set of_parts = namespace(turns=[]) %}{%- for m in messages %}"
    "{%- set turn = m %}{%- if m['content'] is string %}"
    "{%- set turn = dict(m, content=[{'type': 'text', 'text': m['content']}]) %}{%- endif %}"
    "{%- set of_parts.turns = of_parts.turns + [turn] %}"
    "{%- endfor %}{%- set messages = of_parts.turns %}"
)
SENTINELS = "TWCLI-X", "TWCLI-Y"
# What a turn may hold beside its text; a template that shows none of it would drop it silently.
EXTRAS = ("tool_calls", "reasoning_content", "reasoning", "thinking")
SUFFIX = ".jinja"
SWITCHES = ("enable_thinking", "thinking")  # of published templates: whether the answer is thought


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        prompt: the prompt, up to where the assistant's turn begins.
        rest: what the whole conversation has after the prompt; empty for a prompt alone.
        x_start, x_stop: characters of `prompt` that hold the turn that is answered; the whole
            prompt where it is not found.
    """

    prompt: str
    rest: str
    x_start: int
    x_stop: int


def pinned(template: str | Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """The template as one text that gives the same tokens every day: with a fixed date, and with
    `settings` as defaults of its variables.

    Args:
        template: as `tokenizer.chat_template`; of several, `tool_use` is the one for conversations
            with tools, and `default` for all others.

    Raises:
        UserError: several templates and none is called `default`.
    """
    if not isinstance(template, str):
        if "default" not in template:
            raise UserError(
                f"several chat templates ({', '.join(template)}), none is called default; "
                f"give --template FILE{SUFFIX}"
            )
        tools = template.get("tool_use")
        template = template["default"]
        if tools is not None:
            template = (
                f"{{% if tools is defined and tools is not none %}}\n{open_ended(tools)}"
                f"{{%+ else %}}\n{open_ended(template)}{{%+ endif %}}"
            )
    head = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {literal(value)} %}}{{% endif %}}"
        for name, value in sorted(settings.items())
    )
    if "strftime_now" in template and DATE_MACRO not in template:
        # The longest directives first, so that "%-d" is not read as "%-".
        steps = "".join(
            f" | replace({literal('%' + letter)}, {literal(value)})"
            for letter, value in sorted(DATE.items(), key=lambda item: -len(item[0]))
        )
        head += f"{DATE_MACRO}{steps} }}}}{{% endmacro %}}"
    # The environment of chat templates drops the newline after a block (`trim_blocks`), so that
    # the template begins on a line of its own, as it did before.
    if head:
        return f"{head}\n{template}"
    return template


class ChatTemplate:
    """A tokenizer's chat template, or one from a `.jinja` file, applied to records.

    Args:
        tokenizer: renders with `apply_chat_template`.
        template: Jinja text or texts; None for the tokenizer's own.
        settings: defaults of the template's variables.
        source: model or file, for messages.

    Raises:
        UserError: there is no chat template, or it is not valid Jinja.

    Attributes:
        text: the template as one pinned text without latents.
        settings: as given.
        ending: what follows a short answer in the rendering of a whole conversation.
        header: what it has between the prompt and the answer.
        asks: whether `add_generation_prompt` makes a difference.
    """

    def __init__(
        self,
        tokenizer: Any,
        source: str,
        template: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        found = tokenizer.chat_template if template is None else template
        if not found:
            raise UserError(
                f"{source}: the tokenizer has no chat template; give --template FILE{SUFFIX} with "
                "one, or a text file with {x}, {z} and {y}"
            )
        self.source = source
        self.settings = dict(settings or {})
        self._tokenizer = tokenizer
        try:
            self.text = without_latents(pinned(found, settings or {}))
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        self._shown: set[str] = set()
        self._parts_as_text = False
        self._probe()

    def _probe(self) -> None:
        """Finds out whether the template takes a content as text, as a list of parts, or both."""
        x, _ = SENTINELS
        texts: list[str | None] = []
        for content in (x, [{"type": "text", "text": x}]):
            try:
                texts.append(self._render([[{"role": "user", "content": content}]], None, True)[0])
            except UserError as error:
                if isinstance(error.__cause__, _syntax_error()):
                    raise
                texts.append(None)
        plain, parts = texts
        # A template for texts writes a list as Python does.
        takes_parts = parts is not None and x in parts and not re.search(r"['\"]type['\"]", parts)
        self._parts_as_text = not takes_parts
        if takes_parts and (plain is None or x not in plain):
            # Whoever types a text into it, as at inference, would ask nothing without a word.
            self.text = f"{TEXTS_AS_PARTS}\n{self.text}"

        self._probe_answer()

    def _probe_answer(self) -> None:
        """Finds out from a short conversation how the template opens and ends an answer."""
        x, y = SENTINELS
        turns = self._fitted([{"role": "user", "content": x}, {"role": "assistant", "content": y}])
        try:
            (whole,) = self._render([turns], None, False)
            asked, unasked = (self._render([turns[:1]], None, flag)[0] for flag in (True, False))
        except UserError as error:
            raise UserError(f"{self.source}: a question and an answer: {error}") from error
        if y not in whole:
            raise UserError(
                f"{self.source}: its chat template does not show the assistant's turn; "
                f"give --template FILE{SUFFIX}"
            )
        before, _, self.ending = whole.rpartition(y)
        if before.startswith(asked):
            self.header = before.removeprefix(asked)
        else:
            self.header = ""
        self.asks = asked != unasked

    def render(self, examples: Sequence[Example], places: Sequence[str]) -> list[Rendered]:
        """The conversations as texts.

        Args:
            places: file and line of each, for messages.

        Raises:
            UserError: the template fails on a conversation, does not continue its own prompt, or
                leaves out a part of the conversation.
        """
        turns = [self._fitted(turns_of(example)) for example in examples]
        tools = [example.tools or None for example in examples]
        prompts = self._rendered([t[:-1] for t in turns], tools, places, prompt=True)
        wholes = self._rendered(turns, tools, places, prompt=False)
        return [
            self._compared(*one) for one in zip(turns, tools, prompts, wholes, places, strict=True)
        ]

    def render_prompts(self, examples: Sequence[Example], places: Sequence[str]) -> list[Rendered]:
        """The prompts alone: every turn but the target; raises as `render`."""
        turns = [self._fitted(prompt_turns(example)) for example in examples]
        tools = [example.tools or None for example in examples]
        prompts = self._rendered(turns, tools, places, prompt=True)
        found = []
        for those, offered, prompt, place in zip(turns, tools, prompts, places, strict=True):
            self._check_prompt(those, offered, prompt, place)
            found.append(Rendered(prompt, "", *_found(those[-1], prompt)))
        return found

    def _compared(
        self,
        turns: list[dict[str, Any]],
        tools: list[Any] | None,
        prompt: str,
        whole: str,
        place: str,
    ) -> Rendered:
        """The whole conversation, parted where the prompt ends.

        Raises:
            UserError: the template renders the prompt otherwise once an answer follows.
        """
        if not whole.startswith(prompt):
            same = next(
                (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
                min(len(prompt), len(whole)),
            )
            raise UserError(
                f"{place}: the chat template of {self.source} does not continue its own prompt: "
                f"after {prompt[:same][-30:]!r} the prompt has {prompt[same:][:30]!r} and the "
                f"conversation {whole[same:][:30]!r}; change the record, give "
                f"{self._switch(turns, tools)}, or a changed template as --template FILE{SUFFIX}"
            )
        rest = whole[len(prompt) :]
        self._check_prompt(turns[:-1], tools, prompt, place)
        last = turns[-1]
        if not _shows(rest, last.get("content")) and not _continues(prompt, rest, last):
            raise UserError(
                f"{place}: the chat template of {self.source} leaves out text of the last turn: "
                f"it makes {rest[:60]!r} of it; change the record, or give a template that keeps "
                f"it as --template FILE{SUFFIX}"
            )
        for name in EXTRAS:
            if last.get(name):
                less = {key: value for key, value in last.items() if key != name}
                self._check_shown([*turns[:-1], less], tools, False, whole, place, name)
        return Rendered(prompt, rest, *_found(turns[-2] if len(turns) > 1 else {}, prompt))

    def _switch(self, turns: list[dict[str, Any]], tools: list[Any] | None) -> str:
        """The option with which the template continues its own prompt, if a switch of its own does
        it; else the option without a value.

        Args:
            turns: a conversation with its target, as `_render` takes it.
        """
        before = turns[:-1]
        for name, value in product(SWITCHES, (False, True)):
            if name not in self.text:
                continue
            switch = {name: value}
            try:
                (prompt,) = self._render([before], tools, True, **switch)
                (whole,) = self._render([turns], tools, False, **switch)
            except UserError:
                continue
            if whole.startswith(prompt):
                return f"--chat-template-kwargs '{json.dumps(switch)}'"
        return "--chat-template-kwargs"

    def _check_prompt(
        self, turns: list[dict[str, Any]], tools: list[Any] | None, prompt: str, place: str
    ) -> None:
        """Raises UserError where the template leaves out text that a prompt must keep."""
        for number, turn in enumerate(turns, start=1):
            # Results of tools are often written in another notation, and templates leave out the
            # thoughts of earlier answers by intention.
            as_they_are = turn["role"] not in ("assistant", "tool")
            if as_they_are and not _shows(prompt, turn.get("content")):
                raise UserError(
                    f"{place}: the chat template of {self.source} leaves out text of turn "
                    f"{number} ({turn['role']}); change the record, or give a template that keeps "
                    f"it as --template FILE{SUFFIX}"
                )
            # A template that shows one conversation's calls shows those of others.
            if turn.get("tool_calls") and "tool_calls" not in self._shown:
                less = [{k: v for k, v in t.items() if k != "tool_calls"} for t in turns]
                self._check_shown(less, tools, True, prompt, place, "tool_calls")
                self._shown.add("tool_calls")
        if tools and "tools" not in self._shown:
            self._check_shown(turns, None, True, prompt, place, "tools")
            self._shown.add("tools")

    def _check_shown(
        self,
        less: list[dict[str, Any]],
        tools: list[Any] | None,
        prompt: bool,
        text: str,
        place: str,
        name: str,
    ) -> None:
        """Raises UserError where the text is the same without a part of the conversation.

        Args:
            less: the turns without that part.
            name: of the part.
        """
        try:
            (without,) = self._render([less], tools, prompt)
        except UserError:  # what is left is no conversation, so the template looks at it
            return
        if without == text:
            raise UserError(
                f"{place}: the chat template of {self.source} shows nothing of '{name}'; leave it "
                f"out of the records, or give a template that has it as --template FILE{SUFFIX}"
            )

    def _rendered(
        self,
        conversations: list[list[dict[str, Any]]],
        tools: list[list[Any] | None],
        places: Sequence[str],
        *,
        prompt: bool,
    ) -> list[str]:
        """Texts of conversations, together as far as they offer no tools."""
        plain = [row for row, offered in enumerate(tools) if offered is None]
        together = [conversations[row] for row in plain]
        texts = [""] * len(conversations)
        try:
            found = self._render(together, None, prompt)
        except UserError:  # one of them; which one, the next passes find
            found = []
        for row, text in zip(plain, found, strict=False):
            texts[row] = text
        for row, conversation in enumerate(conversations):
            if found and tools[row] is None:
                continue
            try:
                (text,) = self._render([conversation], tools[row], prompt)
            except UserError as error:
                raise UserError(f"{places[row]}: {error}") from error
            texts[row] = text
        return texts

    def _render(
        self,
        conversations: list[list[dict[str, Any]]],
        tools: list[Any] | None,
        prompt: bool,
        **variables: Any,
    ) -> list[str]:
        """Texts of conversations that offer the same tools, or a UserError of the template.

        Args:
            variables: of the template, other than its settings.
        """
        if not conversations:
            return []
        try:
            texts: list[str] = self._tokenizer.apply_chat_template(
                conversations,
                tools=tools,
                chat_template=self.text,
                add_generation_prompt=prompt,
                tokenize=False,
                **variables,
            )
        except Exception as error:  # a template is a program and may raise any error
            raise UserError(
                f"the chat template of {self.source} refuses it: {str(error)[:200]}; change the "
                f"turns, or give another template as --template FILE{SUFFIX}"
            ) from error
        return texts

    def _fitted(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The turns with contents as texts where the template takes no parts, without keys that are
        null.
        """
        fitted = []
        for turn in turns:
            turn = {key: value for key, value in turn.items() if value is not None}
            content = turn.get("content")
            if isinstance(content, list) and self._parts_as_text:
                turn["content"] = "".join(part["text"] for part in content)
            fitted.append(turn)
        return fitted


def turns_of(example: Example) -> list[dict[str, Any]]:
    """The turns of a record, the last one being the target; of two texts, a user's turn and an
    assistant's.
    """
    if example.messages is not None:
        return list(example.messages)
    return [
        {"role": "user", "content": example.x},
        {"role": "assistant", "content": example.y},
    ]


def prompt_turns(example: Example) -> list[dict[str, Any]]:
    """The turns before the target: all but the last where the assistant has it. A record that is a
    prompt alone has no other.
    """
    turns = turns_of(example)
    last = turns[-1]
    if last["role"] == "assistant":
        return turns[:-1]
    return turns


def content_text(content: Any) -> str:
    """A turn's content as text: its parts one after another."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or () if isinstance(part, dict))


def _shows(text: str, content: Any) -> bool:
    """Whether the text holds the content, white space apart: templates strip and add some."""
    wanted = content_text(content).strip()
    if wanted in text:
        return True
    return "".join(wanted.split()) in "".join(text.split())


def _continues(prompt: str, rest: str, last: Mapping[str, Any]) -> bool:
    """Whether the end of the prompt and what follows it together show the content: generation
    prompts that open `<think>` hold the beginning of an answer that was thought.
    """
    content = content_text(last.get("content"))
    wanted = "".join(content.split())
    before = "".join(prompt.split())
    longest = min(len(wanted) - 1, LONGEST_OPENING)
    for opened in range(longest, 0, -1):
        if before.endswith(wanted[:opened]):
            return _shows(rest, wanted[opened:])
    return False


def _found(turn: Mapping[str, Any], prompt: str) -> tuple[int, int]:
    """Where the turn's content is in the prompt; all of the prompt where it is not found."""
    content = content_text(turn.get("content")).strip()
    start = prompt.rfind(content) if content else -1
    if start < 0:
        return 0, len(prompt)
    return start, start + len(content)


def read_template_file(path: str) -> str:
    """The text of a `.jinja` file. Raises UserError: it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"--template {path}: {reason}; give tags, chat, a chat template in a {SUFFIX} file, "
            "or a text file with {x}, {z} and {y}"
        ) from error


def _syntax_error() -> type[Exception]:
    """Imported late: jinja2 takes its time."""
    from jinja2 import TemplateSyntaxError

    return TemplateSyntaxError
