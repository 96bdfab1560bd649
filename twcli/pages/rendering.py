"""Templates of this folder become pages.

Everything that is not marked as safe is escaped. A page makes no request: its policy allows the
styles and the one script that are in it, the script by its hash (W3C Content Security Policy 3,
"script-src").
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from twcli.pages import text

COLOURS = 8  # of latents, in page.css; further latents take them in turn, and all have labels


def render(template: str, **values: Any) -> str:
    """A page as one file of HTML.

    Args:
        template: the name of a file in this folder that extends `base.html.jinja`.
        values: what the template shows.

    Raises:
        jinja2.UndefinedError: the template shows what was not given.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    """Jinja2 with escaping on; a name that a template does not have is an error."""
    environment = Environment(
        loader=PackageLoader("twcli", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cut": text.cut,
        "whole_options": whole_options,
        "visible": text.visible,
        "share": text.share,
        "number": text.number,
        "often": text.often,
        "interval": text.interval,
        "percent": lambda value: f"{100 * min(max(value, 0.0), 1.0):.2f}%",
        "thousands": lambda value: f"{value:,}",
    }
    script = resource("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "css": Markup(resource("page.css")),
        "script": Markup(script),
        "script_hash": f"'sha256-{digest}'",
        "colours": COLOURS,
    }
    return environment


def whole_options(sentence: str) -> Markup:
    """Escaped, and no line ends within `--latents`."""
    escaped = str(escape(sentence))
    return Markup(re.sub(r"--\w[\w-]*", r'<span class="whole">\g<0></span>', escaped))


def resource(name: str) -> str:
    """The text of a file in this folder, also where the package lies in a zip file."""
    folder = importlib.resources.files(__package__)
    file = folder.joinpath(name)
    return file.read_text("utf-8")
