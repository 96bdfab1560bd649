"""What `twcli discover` found, as a page (`names.html`) and as lines for the terminal.

Both show the same `summary`, a dict of plain values; K latents, `z0` to `z{K-1}`. Rows count from 0
there and are shown as lines of the data, from 1. The page needs no network and runs no script, and
everything that comes from the data is escaped.

Keys of the summary:
    title, date, model, data: str.
    records, prompts, latents, used: int; `used` latents have completions.
    verdict: str, the first sentence.
    score, score_ci, chance: estimated share of rows named right, its 95 % interval [low, high] or
        None, and what chance gives; all in [0, 1].
    stability: float or None. repulsion: nats a pair of completions of one prompt, or "infinite".
    proportions: K floats in [0, 1].
    per_latents: a dict for each K that was tried, with latents, stability, above_noise or
        evidence, score and chosen; where K was given, that one and its neighbours.
    nested: str or None, how finer answers nest in coarser ones.
    latent_cards: K dicts with latent, share, mean_probability, phrases (text, z, share and, where
        known, elsewhere) and typical (row, x, y, probability).
    ambiguous: dicts with row, x, y, probability and latents [first, second].
    ambiguous_share: float in [0, 1].
    map: {"points": [[x, y, latent], ...]} or None; -1 for no latent.
    names, page: optional, the paths of names.jsonl and names.html. command: optional, what trains
        from the names; made of the model, the data and the latents where it is left out.
"""

from __future__ import annotations

import importlib.resources
import math
import shlex
import unicodedata
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.cells import cell_len

COLOURS = 8  # in names_page.css; further latents take them in turn, and every colour has a label
MAX_TEXT = 400  # characters of a text that are shown
COLUMNS = 80  # of the terminal
MAP_MARGIN = 4.0  # percent of the map's width on either side, so that labels fit
MAP_ASPECT = 1.5  # width over height, as in names_page.css
BAR_FROM, BAR_WIDTH = 13.0, 72.0  # percent of the chart; the rest is for its labels
TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
JOINERS = "\u200c\u200d"  # the only invisible characters that belong to words


def render_names_page(summary: dict[str, Any]) -> str:
    """The page, one file of HTML.

    Args:
        summary: as above.

    Raises:
        jinja2.UndefinedError, KeyError: the summary lacks a key.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "cut": cut,
        "share": _share,
        "percent": lambda value: f"{100 * min(max(value, 0.0), 1.0):.2f}%",
        "number": _number,
        "often": _often,
    }
    bars, ticks = _bars(summary["proportions"])
    return environment.from_string(_resource("names_page.html.jinja")).render(
        s=summary,
        css=Markup(_resource("names_page.css")),
        colours=COLOURS,
        bars=bars,
        ticks=ticks,
        map=_map(summary["map"]),
        repulsion=_repulsion(summary["repulsion"]),
        names=_names(summary),
        command=_visible(_command(summary)),
    )


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for a terminal: plain text, each line at most 80 columns wide.

    Raises:
        KeyError: the summary lacks a key.
    """
    lines = _wrapped(summary["verdict"])
    lines += _wrapped(_score_sentence(summary))
    for card in summary["latent_cards"]:
        lines += ["", *_latent_lines(card)]
    if summary["per_latents"]:
        lines += ["", *_table_lines(summary["per_latents"])]
    if summary["nested"]:
        lines += ["", *_wrapped(summary["nested"])]
    lines += ["", *_ambiguity_lines(summary)]
    if summary.get("page"):
        lines += ["", "Page:", *_wrapped(summary["page"], indent="  ")]
    return lines


def cut(text: str, most: int = MAX_TEXT) -> str:
    """The text without what cannot be seen, new lines kept, with an ellipsis where it is cut."""
    text = _visible(str(text))
    return text if len(text) <= most else text[:most].rstrip() + "…"


def _visible(text: str) -> str:
    """Without control characters, which could steer a terminal or turn the reading direction."""
    return "".join(
        character
        for character in text
        if character in "\n\t"
        or character in JOINERS
        or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
    )


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text("utf-8")


# Numbers as text


def _share(value: float) -> str:
    percent = 100 * value
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"


def _number(value: float | str | None) -> str:
    if value is None:
        return "-"
    return _visible(str(value)) if isinstance(value, str | int) else f"{value:.2f}"


def _often(phrase: dict[str, Any]) -> str:
    """How often a phrase occurs in its latent, and how much more often than in the others."""
    here = _share(phrase["share"])
    elsewhere = phrase.get("elsewhere")
    if elsewhere is None:
        return here
    if not elsewhere:
        return f"{here}, only here"
    times = phrase["share"] / elsewhere
    return f"{here}, {times:.{int(times < 10)}f} times as often"


def _repulsion(value: float | str) -> str:
    if value == "infinite":
        return "infinite: no latent repeats"
    return f"{value:.2f} nats a pair" if value else "none: latents may repeat"


def _names(summary: dict[str, Any]) -> str:
    return str(summary.get("names", "names.jsonl"))


def _command(summary: dict[str, Any]) -> str:
    if "command" in summary:
        return summary["command"]
    options = ["--names", _names(summary), "--model", summary["model"], "--data", summary["data"]]
    options += ["--latents", str(summary["latents"]), "--out", "run"]
    return "twcli train " + shlex.join(options)


# Figures of the page, in percent of their width and height


def _bars(proportions: Sequence[float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    most = max(proportions, default=0.0) or 1.0
    step = next((step for step in TICK_STEPS if most / step <= 5), 0.25)
    last = math.ceil(most / step - 1e-9)
    scale = BAR_WIDTH / (last * step)
    ticks = [
        {"share": i * step, "at": f"{BAR_FROM + scale * i * step:.2f}%"} for i in range(last + 1)
    ]
    bars = [
        {
            "share": share,
            "width": f"{scale * share:.2f}%",
            "end": f"{BAR_FROM + scale * share:.2f}%",
        }
        for share in proportions
    ]
    return bars, ticks


def _map(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Points in percent, with one unit for both axes, in groups of a latent with its centre."""
    if not found or not found["points"]:
        return None
    points = found["points"]
    across, up = [x for x, _, _ in points], [y for _, y, _ in points]
    unit = max((max(across) - min(across)) / MAP_ASPECT, max(up) - min(up)) or 1.0
    scale = (100 - 2 * MAP_MARGIN) / unit
    middle = (max(across) + min(across)) / 2, (max(up) + min(up)) / 2
    groups: dict[int, list[tuple[float, float]]] = {}
    for x, y, latent in points:
        place = 50 + scale * (x - middle[0]) / MAP_ASPECT, 50 - scale * (y - middle[1])
        groups.setdefault(int(latent), []).append((round(place[0], 2), round(place[1], 2)))
    return {"count": len(points), "groups": [_group(k, groups[k]) for k in sorted(groups)]}


def _group(latent: int, points: list[tuple[float, float]]) -> dict[str, Any]:
    centre = [round(sum(values) / len(points), 2) for values in zip(*points, strict=True)]
    known = latent >= 0
    return {
        "points": points,
        "centre": centre,
        "colour": f"c{latent % COLOURS}" if known else "none",
        "label": f"z{latent}" if known else "",
    }


# Lines of the terminal


def _score_sentence(summary: dict[str, Any]) -> str:
    interval = ""
    if summary["score_ci"]:
        interval = " (95 % interval {} to {})".format(*map(_share, summary["score_ci"]))
    sentence = (
        f"Estimated share named right: {_share(summary['score'])}{interval}; "
        f"chance: {_share(summary['chance'])}."
    )
    if summary["stability"] is not None:
        sentence += f" Stability: {_number(summary['stability'])}."
    return f"{sentence} {summary['used']} of {summary['latents']} latents in use."


def _latent_lines(card: dict[str, Any]) -> list[str]:
    head = f"z{card['latent']:<3} {_share(card['share']):>6}  "
    if not card["share"]:
        return [head + "not used"]
    head += f"sure {card['mean_probability']:.2f}   "
    lines = [head + _phrases_that_fit(card["phrases"], COLUMNS - cell_len(head))]
    for item in card["typical"][:1]:
        lines.append(_one_line(f"     line {item['row'] + 1}: ", item["y"]))
    return [line.rstrip() for line in lines]


def _phrases_that_fit(phrases: Sequence[dict[str, Any]], columns: int) -> str:
    texts = [" ".join(_visible(phrase["text"]).split()) for phrase in phrases]
    for count in range(len(texts), 0, -1):
        joined = " / ".join(texts[:count])
        if cell_len(joined) <= columns:
            return joined
    return _fitted(texts[0], columns) if texts else "no phrase sets it apart"


def _table_lines(per_latents: Sequence[dict[str, Any]]) -> list[str]:
    criterion = "evidence" if per_latents[0].get("above_noise") is None else "above_noise"
    names = ("stability", criterion, "score")
    lines = ["latents" + "".join(f"{name.replace('_', ' '):>12}" for name in names)]
    for row in per_latents:
        values = "".join(f"{_fitted(_number(row[name]), 11):>12}" for name in names)
        lines.append(f"{row['latents']:>7}{values}{'  chosen' if row['chosen'] else ''}")
    return lines


def _ambiguity_lines(summary: dict[str, Any]) -> list[str]:
    lines = _wrapped(f"Ambiguous: {_share(summary['ambiguous_share'])} of the completions.")
    for item in summary["ambiguous"][:1]:
        first, second = item["latents"]
        lines.append(_one_line(f"     line {item['row'] + 1}, z{first} or z{second}: ", item["y"]))
    return lines


def _one_line(head: str, text: str) -> str:
    """The beginning of a text behind `head`, its new lines and indents as spaces."""
    text = " ".join(cut(text).split())
    return head + _fitted(text, COLUMNS - cell_len(head))


def _fitted(text: str, columns: int) -> str:
    if cell_len(text) <= columns:
        return text
    return _prefix(text, columns - 1) + "…"


def _prefix(text: str, columns: int) -> str:
    """The longest beginning that is no wider; a character of a script may be 2 columns wide."""
    end = min(len(text), columns)
    while end > 1 and cell_len(text[:end]) > columns:
        end -= 1
    return text[:end]


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of words; a word that is too wide for a line, such as a path, continues in the next."""
    columns = COLUMNS - len(indent)
    lines, line = [], ""
    for word in _visible(str(text)).split():
        if line and cell_len(line) + 1 + cell_len(word) > columns:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
        while cell_len(line) > columns:
            begin = _prefix(line, columns)
            lines.append(begin)
            line = line[len(begin) :]
    return [indent + line for line in [*lines, line] if line]
