"""The styles, computed from their own text."""

import re
from itertools import combinations

import numpy as np
import pytest
from jinja2 import UndefinedError

from twcli.pages import text
from twcli.pages.rendering import COLOURS, render, resource, whole_options

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color
# Vision Deficiency", table 1, severity 1; of linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
# IEC 61966-2-1: linear sRGB to XYZ, and its white
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def encoded(colour):
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def linear(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(rgb):
    """Relative luminance, WCAG 2.2."""
    return float(linear(rgb) @ [0.2126, 0.7152, 0.0722])


def contrast(one, two):
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    """CIE 1976 L*a*b* of linear RGB."""
    xyz = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def themes():
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", resource("page.css"), re.DOTALL)
    )
    return {"light": light, "dark": light | dark}


@pytest.fixture(params=["light", "dark"])
def colours(request):
    return {name: encoded(value) for name, value in themes()[request.param].items()}


def test_texts_have_contrast(colours):
    for name in ("ink", "soft", "link", "bad", "good"):
        for ground in ("paper", "chip"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def test_texts_on_every_shade_have_contrast(colours):
    """`color-mix(in srgb, ...)` mixes the encoded values."""
    for share in np.linspace(0, 1, 21):
        ground = share * colours["heat"] + (1 - share) * colours["paper"]
        assert contrast(colours["ink"], ground) >= 4.5, share


def test_outlines_and_lines_have_contrast(colours):
    """WCAG 2.2, 1.4.11: 3 for what a chart is understood by. Latents' colours are inside outlines
    of --soft; lines without one are of the four colours that have it.
    """
    assert contrast(colours["soft"], colours["paper"]) >= 4.5
    lines = re.findall(
        r"^\.d\d \{ stroke: var\(--(c\d)\)|(?<=\} )\.d\d \{ stroke: var\(--(c\d)\)",
        resource("page.css"),
        re.MULTILINE,
    )
    names = ["".join(pair) for pair in lines]
    assert len(names) == 4
    assert all(contrast(colours[name], colours["paper"]) >= 3 for name in names)


@pytest.mark.parametrize("vision", VISIONS)
def test_the_colour_blind_can_tell_latents_apart(colours, vision):
    """A difference of 2.3 is just noticed side by side (Mahy et al. 1994)."""
    seen = [lab(VISIONS[vision] @ linear(colours[f"c{i}"])) for i in range(COLOURS)]
    assert min(np.linalg.norm(one - two) for one, two in combinations(seen, 2)) >= 15


def test_no_colour_is_outside_the_themes():
    """So that the tests above are of all colours; accents are never the colour of text."""
    css = resource("page.css")
    rules = re.sub(r":root \{.*?\}", "", css, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(|hsl", rules)
    texts = set(re.findall(r"(?<![\w-])color: ([^;]+);", rules))
    assert texts == {"var(--ink)", "var(--soft)", "var(--link)", "var(--bad)", "inherit"}
    assert {p for p, _ in re.findall(r"([a-z-]+): var\(--(c\d)\)", rules)} == {"fill", "stroke"}
    assert "print-color-adjust: exact" in rules


def test_what_is_not_given_is_an_error():
    with pytest.raises(UndefinedError):
        render("names.html.jinja", title="t")


def test_cut():
    assert text.cut("a\n b") == "a\n b"
    assert text.cut("x" * 400) == "x" * 400
    assert text.cut("x" * 401) == "x" * 400 + "…"


def test_no_line_ends_within_an_option():
    shown = whole_options("<b> Change --latents, or not.")
    assert shown == '&lt;b&gt; Change <span class="whole">--latents</span>, or not.'
