"""What `twcli discover` found, as a page (`names.html`) and as lines for the terminal.

Both show the same `summary`, a dict of plain values; K latents, `z0` to `z{K-1}`. Rows count from 0
there and are shown as lines of the data, from 1. Everything that comes from the data is escaped.

Keys of the summary:
    title, date, model, data: str.
    records, prompts, latents, used: int; `used` latents have completions.
    verdict: str, the first sentence.
    score, score_ci, chance: estimated share of rows named right, its 95 % interval [low, high] or
        None, and what chance gives; all in [0, 1].
    stability: float or None. repulsion: nats a pair of completions of one prompt, or "infinite".
    proportions: K floats in [0, 1].
    per_latents: a dict for each K that was tried, with latents, stability, support or
        evidence, score and chosen; where K was given, that one and its neighbours.
    nested: str or None, how finer answers nest in coarser ones.
    latent_cards: K dicts with latent, share, mean_probability, phrases (text, z, share and, where
        known, elsewhere) and typical (row, x, y, probability).
    ambiguous: dicts with row, x, y, probability and latents [first, second].
    ambiguous_share: float in [0, 1].
    map: {"points": [[x, y, latent], ...]} or None; -1 for no latent.
    took: optional, how long it took. names, page: optional, the paths of names.jsonl and
        names.html. command: optional, what trains from the names; made of the model, the data and
        the latents where it is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len

from twcli.models.card import public_place
from twcli.pages import charts
from twcli.pages.rendering import render
from twcli.pages.text import cut, number, share, visible

COLUMNS = 80  # of the terminal
MARKS = {  # in phrases
    "^": "the start of the completion",
    "⏎": "a new line",
    "#": "any number",
    "1.": "a numbered list",
}
SUPPORT = "support: nats that speak for a number, the most wins"
RIGHT_IF = "right if so"  # of the rows, a share; the score of a naming doubts the number as well


def render_names_page(summary: dict[str, Any]) -> str:
    """The page, one file of HTML.

    Args:
        summary: as above.

    Raises:
        jinja2.UndefinedError, KeyError: the summary lacks a key.
    """
    cards = [card | _naming(card, _names(summary)) for card in summary["latent_cards"]]
    chart = charts.scatter(summary["map"])
    more = summary["per_latents"] or summary["nested"]
    columns, rows = _numbers_tried(summary["per_latents"])
    return render(
        "names.html.jinja",
        title=summary["title"],
        command_name="twcli discover",
        facts=_facts(summary),
        contents=[
            ("shares", "Shares"),
            ("latents", "The latents"),
            *([("map", "Map")] if chart else []),
            *([("number", "Number of latents")] if more else []),
            ("ambiguous", "Ambiguous completions"),
            ("now", "What now"),
        ],
        s=summary | {"latent_cards": cards},
        map=chart,
        number_columns=columns,
        number_meaning=_meaning(_criteria(summary["per_latents"])),
        number_rows=rows,
        repulsion=_repulsion(summary["repulsion"]),
        names=_names(summary),
        command=visible(_command(summary)),
        **charts.bars(summary["proportions"]),
    )


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the page's head."""
    facts = [
        ("Date", summary["date"]),
        ("Model", public_place(summary["model"])),
        ("Data", public_place(summary["data"])),
        ("Completions", f"{summary['records']:,} of {summary['prompts']:,} prompts"),
        ("Latents", f"{summary['used']} of {summary['latents']} in use"),
    ]
    if "took" in summary:
        return [*facts, ("Naming took", summary["took"])]
    return facts


def _naming(card: dict[str, Any], names: str) -> dict[str, Any]:
    """What a card says of the latent's name: where it is edited, in texts and code by turns."""
    if not card["typical"]:
        return {"name": None, "facts": [], "rename": None}
    row = card["typical"][0]["row"]
    rename = ["add ", '"name": "..."', " on line ", f"{row + 1}", " of ", names]
    return {"name": None, "facts": [], "rename": rename}


def _numbers_tried(
    per_latents: Sequence[dict[str, Any]],
) -> tuple[list[tuple[str, bool]], list[list[str]]]:
    """Columns and rows of the table of numbers of latents."""
    names = _criteria(per_latents)
    columns = [("Latents", True)]
    columns += [(_heading(name).capitalize(), True) for name in names]
    rows = [
        [
            str(row["latents"]),
            *(number(row[name]) for name in names),
            "chosen" if row["chosen"] else "-",
        ]
        for row in per_latents
    ]
    return [*columns, ("Choice", False)], rows


def _criteria(per_latents: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    """The figures that speak for a number of latents, by how the naming was searched."""
    known = per_latents and per_latents[0].get("support") is not None
    if known:
        return "stability", "support", "score"
    return "stability", "evidence", "score"


def _meaning(criteria: Sequence[str]) -> str:
    """What the columns of the table of numbers of latents say."""
    meaning = f"{RIGHT_IF}: share named right if that is the number of strategies."
    if "support" in criteria:
        return f"{SUPPORT}; {meaning}"
    return meaning


def _heading(criterion: str) -> str:
    """What a column of the table of numbers of latents is called."""
    if criterion == "score":
        return RIGHT_IF
    return criterion.replace("_", " ")


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for a terminal: plain text, each line at most 80 columns wide.

    Raises:
        KeyError: the summary lacks a key.
    """
    lines = _wrapped(summary["verdict"])
    lines += _wrapped(_certainty(summary))
    for card in summary["latent_cards"]:
        lines += ["", *_latent_lines(card)]
    lines += _legend(summary["latent_cards"])
    if summary["per_latents"]:
        lines += ["", *_table_lines(summary["per_latents"])]
    if summary["nested"]:
        lines += ["", *_wrapped(summary["nested"])]
    lines += ["", *_ambiguity_lines(summary)]
    if summary.get("page"):
        lines += ["", *_wrapped(f"Page: {summary['page']}")]
    return lines


def _repulsion(value: float | str) -> str:
    """How far completions of one prompt avoid each other's latent."""
    if value == "infinite":
        return "infinite: no latent repeats"
    if value:
        return f"{value:.2f} nats a pair"
    return "none: latents may repeat"


def _names(summary: dict[str, Any]) -> str:
    """The file that the page belongs to, as the user named it."""
    return str(summary.get("names", "names.jsonl"))


def _command(summary: dict[str, Any]) -> str:
    """The command that trains on these names."""
    if "command" in summary:
        return summary["command"]
    options = ["--names", _names(summary), "--model", summary["model"], "--data", summary["data"]]
    options += ["--latents", str(summary["latents"]), "--out", "run"]
    return "twcli train " + shlex.join(options)


# Lines of the terminal


def _certainty(summary: dict[str, Any]) -> str:
    """How sure the share named right is, which the verdict has, and how many latents are used."""
    sentences = []
    if summary["score_ci"]:
        ends = "{} to {}".format(*map(share, summary["score_ci"]))
        sentences.append(f"95% interval of the share named right: {ends}.")
    if summary["stability"] is not None:
        sentences.append(
            f"Stability: {number(summary['stability'])} of 1, how far namings of halves agree."
        )
    sentences.append(f"{summary['used']} of {summary['latents']} latents in use.")
    return " ".join(sentences)


def _latent_lines(card: dict[str, Any]) -> list[str]:
    """A latent in the terminal: its share, what sets it apart and a typical record."""
    head = f"z{card['latent']:<3} {share(card['share']):>6}  "
    if not card["share"]:
        return [head + "not used"]
    head += f"sure {card['mean_probability']:.2f}   "
    lines = [head + _phrases_that_fit(card["phrases"], COLUMNS - cell_len(head))]
    for item in card["typical"][:1]:
        lines.append(_one_line(f"     line {item['row'] + 1}: ", item["y"]))
    return [line.rstrip() for line in lines]


def _legend(cards: Sequence[dict[str, Any]]) -> list[str]:
    """What the marks in these cards' phrases mean."""
    texts = [phrase["text"] for card in cards for phrase in card["phrases"]]
    words = {word for text in texts for word in text.split()}
    marks = [f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in words]
    if not marks:
        return []
    return ["", *_wrapped(f"In phrases: {', '.join(marks)}.")]


def latent_line(card: dict[str, Any], name: str | None = None) -> str:
    """A latent at the end of a training or an evaluation: its share of the records, its name where
    it has one, and the phrases that set it apart, or the beginning of a typical completion.
    """
    head = f"z{card['latent']:<3} {share(card['share']):>4}  "
    if name is not None:
        head += f"{visible(name)}: "
    columns = COLUMNS - cell_len(head)
    if not card["share"]:
        return head + "not used"
    if card["phrases"]:
        return head + _phrases_that_fit(card["phrases"], columns)
    for item in card["typical"][:1]:
        return _one_line(head + "like ", item["y"])
    return head + "no phrase sets it apart"


def _phrases_that_fit(phrases: Sequence[dict[str, Any]], columns: int) -> str:
    """As many phrases as fit into so many columns."""
    texts = [" ".join(visible(phrase["text"]).split()) for phrase in phrases]
    for count in range(len(texts), 0, -1):
        joined = " / ".join(texts[:count])
        if cell_len(joined) <= columns:
            return joined
    if texts:
        return _fitted(texts[0], columns)
    return "no phrase sets it apart"


def _table_lines(per_latents: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each number of latents that was tried."""
    names = _criteria(per_latents)
    lines = ["latents" + "".join(f"{_heading(name):>13}" for name in names)]
    for row in per_latents:
        values = "".join(f"{_fitted(number(row[name]), 11):>13}" for name in names)
        lines.append(f"{row['latents']:>7}{values}{'  chosen' if row['chosen'] else ''}")
    return [*lines, *_wrapped(_meaning(names))]


def _ambiguity_lines(summary: dict[str, Any]) -> list[str]:
    """How many records could have either of two latents, with one of them."""
    lines = _wrapped(f"Ambiguous: {share(summary['ambiguous_share'])} of the completions.")
    for item in summary["ambiguous"][:1]:
        first, second = item["latents"]
        lines.append(_one_line(f"     line {item['row'] + 1}, z{first} or z{second}: ", item["y"]))
    return lines


def _one_line(head: str, text: str) -> str:
    """The beginning of a text behind `head`, its new lines and indents as spaces."""
    words = cut(text).split()
    line = " ".join(words)
    columns = COLUMNS - cell_len(head)
    return head + _fitted(line, columns)


def _fitted(text: str, columns: int) -> str:
    """The text, cut to so many columns."""
    if cell_len(text) <= columns:
        return text
    return _prefix(text, columns - 1) + "…"


def _prefix(text: str, columns: int) -> str:
    """The longest beginning that is no wider; a character of a script may be 2 columns wide."""
    end = min(len(text), columns)
    while end > 1 and cell_len(text[:end]) > columns:
        end -= 1
    return text[:end]


def _wrapped(text: str) -> list[str]:
    """Lines of words; a word that is too wide for a line, such as a path, continues in the next."""
    lines, line = [], ""
    for word in visible(str(text)).split():
        if line and cell_len(line) + 1 + cell_len(word) > COLUMNS:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
        while cell_len(line) > COLUMNS:
            begin = _prefix(line, COLUMNS)
            lines.append(begin)
            line = line[len(begin) :]
    return [line for line in [*lines, line] if line]
