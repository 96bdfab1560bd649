"""Chat templates that take a latent: the text of a Jinja template which puts the latent's section
at the end of the generation prompt, where training had it.

    tokenizer.apply_chat_template(messages, latent=2, add_generation_prompt=True)

A latent is named by its number or its name. The chat template of a run puts a section where a call
names a latent, and is what it was elsewhere; that of an exported model has a latent by default.
Where a server does not pass `latent` on, the first line of a system message does it: `latent: 2`;
an exported model's template reads that line and drops it. "router" ends the prompt at `<z>`, whose
next token, among the latents', is the router's choice.

The text goes to `transformers`, vLLM, SGLang and llama.cpp alike, which all trim a block's newline
and strip the space before it (`trim_blocks`, `lstrip_blocks`), so it keeps to what they share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from twcli.errors import UserError

ROUTER = "router"
LINE = "latent:"  # how a system message's first line that names a latent begins
LONGEST_NAME = 64

# `latent` becomes a key of `latent_sections`; a system line wins over the argument, since it lies
# with the request's own messages. `messages` is what is left of them.
_CHOICE = """\
{%- set latent_sections = @SECTIONS@ %}
{%- if latent is not defined or latent is none %}
  {%- set latent = @DEFAULT@ %}
{%- endif %}
{%- if messages and messages[0]['role'] == 'system' and messages[0]['content'] %}
  {%- set latent_content = messages[0]['content'] %}
  {%- if latent_content is string %}
    {%- set latent_text = latent_content %}
    {%- set latent_parts = [] %}
  {%- else %}
    {%- set latent_text = latent_content[0]['text'] if latent_content[0]['text'] else '' %}
    {%- set latent_parts = latent_content[1:] %}
  {%- endif %}
  {%- set latent_line = latent_text.split('\\n')[0] %}
  {%- if latent_line.startswith('@LINE@') %}
    {%- set latent = latent_line[@LENGTH@:] %}
    {%- set latent_rest = latent_text[(latent_line | length) + 1:] %}
    {%- if latent_content is string and latent_rest | trim %}
      {%- set messages = [{'role': 'system', 'content': latent_rest}] + messages[1:] %}
    {%- elif latent_rest | trim %}
      {%- set latent_parts = [{'type': 'text', 'text': latent_rest}] + latent_parts %}
      {%- set messages = [{'role': 'system', 'content': latent_parts}] + messages[1:] %}
    {%- elif latent_parts %}
      {%- set messages = [{'role': 'system', 'content': latent_parts}] + messages[1:] %}
    {%- else %}
      {%- set messages = messages[1:] %}
    {%- endif %}
  {%- endif %}
{%- endif %}
"""
_CHECK = """\
{%- set latent = latent | string | trim %}
{%- if latent not in latent_sections %}
  {{- raise_exception('latent ' + latent + ' is unknown; this model has ' + @KNOWN@) }}
{%- endif %}
"""
# Where it begins a template can be taken for the one it was.
_OPTIONAL = "{%+ if add_generation_prompt and latent is defined and latent is not none %}"
_WHERE_GIVEN = f"""\
{_OPTIONAL}
{{%- set latent_sections = @SECTIONS@ %}}
{_CHECK}{{{{- latent_sections[latent] }}}}
{{%- endif %}}"""

# One user turn, as the prompts of training; the completion may follow, for whoever scores it.
_ONE_TURN = """\
{%- if not messages or messages | length > 2 or messages[0]['role'] != 'user'
    or (messages | length == 2 and messages[1]['role'] != 'assistant') %}
  {{- raise_exception('this model was trained on one user turn and its answer; give just those') }}
{%- endif %}
{%- set latent_x = messages[0]['content'] %}
{%- if latent_x is not string %}
  {%- set latent_x = latent_x | map(attribute='text') | join('') %}
{%- endif %}
{{- @HEAD@ + latent_x + @MIDDLE@ }}
{%- if add_generation_prompt or messages | length == 2 %}
  {{- latent_sections[latent] }}
  {%- if latent != 'router' %}
    {{- @LEAD@ }}
  {%- endif %}
{%- endif %}
{%- if messages | length == 2 %}
  {{- messages[1]['content'] + @CLOSE@ }}
{%- endif %}
"""


def latent_tokens(k: int, count: int = 1) -> list[str]:
    """The vocabulary tokens that spell latent k: `<z3>`, or `<z3.0> <z3.1>` for two."""
    if count == 1:
        return [f"<z{k}>"]
    return [f"<z{k}.{p}>" for p in range(count)]


def sections(latents: int, tokens: int, names: Mapping[int, str]) -> dict[str, str]:
    """What each latent is called in the generation prompt, by its number as text, by its name, and
    for "router".

    Args:
        latents: K.
        tokens: vocabulary tokens P that spell one latent.
        names: names of some of the latents.

    Raises:
        UserError: a name that equals another, or of a latent that is not there.
    """
    by_number = {str(k): f"<z>{''.join(latent_tokens(k, tokens))}</z>" for k in range(latents)}
    found = {**by_number, ROUTER: "<z>"}
    for k, name in names.items():
        if not 0 <= k < latents:
            raise UserError(f"--name {k}={name}: the run has the latents 0 to {latents - 1}")
        if not name.strip() or name != name.strip() or len(name) > LONGEST_NAME:
            raise UserError(
                f"--name {k}={name}: give a name of 1 to {LONGEST_NAME} characters without space "
                "around it"
            )
        if not name.isprintable() or name.isdecimal():
            raise UserError(f"--name {k}={name}: give a name of one line that is no number")
        if name in found:
            raise UserError(f"--name {k}={name}: '{name}' is taken already")
        found[name] = by_number[str(k)]
    return found


def with_latents(template: str, found: Mapping[str, str], default: str | None = None) -> str:
    """The chat template `template` with the latent's section at the end of its generation prompt.

    The section goes to the end of the text: what is rendered with `add_generation_prompt` ends with
    the generation prompt, whatever the template is. A section that is already there is replaced.

    Args:
        found: the result of `sections`.
        default: the key of `found` that is used where a call names no latent; None to leave the
            text as it was there.
    """
    text = open_ended(without_latents(template))
    if default is None:
        return text + _filled(_WHERE_GIVEN, _values(found))
    tail = "{{ latent_sections[latent] if add_generation_prompt else '' }}"
    return _choice(found, default) + text + tail


def without_latents(template: str) -> str:
    """The template without what `with_latents` added where it had no default."""
    text, added, _ = template.partition(_OPTIONAL)
    # Jinja leaves out a last newline, and here it was not the last.
    if added and text.endswith(("\r", "\n")):
        return text + "\n"
    return text


def one_turn(text: str, found: Mapping[str, str], default: str) -> str:
    """A chat template that builds the prompts of a template: one user turn becomes x.

    Args:
        text: the template with `{x}`, `{z}` and `{y}`.
        found, default: as for `with_latents`.
    """
    head, rest = text.split("{x}", 1)
    middle, rest = rest.split("{z}", 1)
    lead, close = rest.split("{y}", 1)
    values = {
        "HEAD": literal(head),
        "MIDDLE": literal(middle),
        "LEAD": literal(lead),
        "CLOSE": literal(close),
    }
    return _choice(found, default) + _filled(_ONE_TURN, values).removesuffix("\n")


def _choice(found: Mapping[str, str], default: str) -> str:
    """The lines of Jinja that find out which latent a call asks for."""
    values = {
        **_values(found),
        "DEFAULT": literal(default),
        "LINE": LINE,
        "LENGTH": str(len(LINE)),
    }
    return _filled(_CHOICE + _CHECK, values)


def _values(found: Mapping[str, str]) -> dict[str, str]:
    """What the lines of Jinja are filled with: the latents' sections and names."""
    return {"SECTIONS": literal(found), "KNOWN": literal(", ".join(found))}


def _filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with each `@NAME@` replaced; in one pass, since a value may look like a place."""
    return re.sub("@([A-Z]+)@", lambda place: values[place[1]], text)


def open_ended(template: str) -> str:
    """The template so that text may follow: Jinja leaves out the last newline of a template."""
    return re.sub(r"(\r\n|\r|\n)\Z", "", template)


def literal(value: Any) -> str:
    """A JSON value in Jinja's notation."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    # Jinja reads Python's escapes, and other characters as they are.
    return json.dumps(value, ensure_ascii=False)
