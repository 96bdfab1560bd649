"""How `sampling` is shown: a table on the terminal, curves with bands on the page.

Every curve has a mark and a name of its own beside its colour.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

ARMS = {
    "frozen": ("#d55e00", "6 4", "frozen model"),
    "even": ("#0072b2", "", "run, evenly"),
    "proportional": ("#009e73", "2 3", "run, by router"),
    "router": ("#cc79a7", "9 3 2 3", "run, router drawn"),
}
CHARTS = (
    ("pass_at_k", "pass@k", "Share of the prompts with a right answer among k samples."),
    (
        "strategies_at_k",
        "Strategies covered",
        "Different strategies among k samples, by the judge.",
    ),
    ("distinct_at_k", "Distinct completions", "Share of k samples that are different texts."),
)
DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "vendi", "self_bleu", "reference_bleu")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 240, 46, 150, 24, 30
APART = 15  # pixels between names


def section(sampling: dict[str, Any] | None) -> str:
    """The page's part; empty where nothing was sampled."""
    if sampling is None:
        return ""
    arms = sampling["arms"]
    parts = [
        "<h2>Samples: the frozen model against the run</h2><p class='soft'>"
        f"{sampling['samples']} samples of each of {sampling['prompts']:,} prompts, the run's at "
        f"temperature {sampling['temperature']:g}{_frozen_note(arms)}. "
        "Bands are 95 % bootstrap intervals over prompts.</p>"
    ]
    for key, title, note in CHARTS:
        if any(arm[key] for arm in arms.values()):
            parts.append(f"<h3>{title}</h3><p class='soft'>{note}</p>")
            parts.append(
                _chart(sampling["k"], {n: (a[key], a[f"{key}_ci"]) for n, a in arms.items()}, title)
            )
    if sampling["samples_saved"]:
        parts.append(_saved(sampling))
    parts.append(_diversity(arms))
    parts.append(_transmission(sampling["transmission"]))
    return "".join(parts)


def _frozen_note(arms: dict[str, Any]) -> str:
    if "frozen" not in arms:
        return "; the frozen model was not found"
    return f", the frozen model's at {arms['frozen']['temperature']:g}, its best of a few"


def _chart(ks: Sequence[int], series: dict[str, Any], title: str) -> str:
    """Curves over log2 k; each name is next to the end of its curve."""
    known = [
        value
        for means, intervals in series.values()
        for values in (means, *zip(*[pair for pair in intervals if pair], strict=True))
        for value in values
        if value is not None
    ]
    low, high = min(0.0, *known), max(known)
    last = math.log2(ks[-1]) or 1.0

    def x(k: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(k) / last

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / ((high - low) or 1.0)

    drawn, ends = [], []
    for name, (means, intervals) in series.items():
        colour, dash, label = ARMS[name]
        points = [(k, m, i) for k, m, i in zip(ks, means, intervals, strict=True) if m is not None]
        if not points:
            continue
        outline = [(x(k), y(i[1])) for k, _, i in points if i]
        outline += [(x(k), y(i[0])) for k, _, i in reversed(points) if i]
        drawn.append(f"<polygon points='{_path(outline)}' fill='{colour}' fill-opacity='.15'/>")
        path = _path([(x(k), y(m)) for k, m, _ in points])
        drawn.append(f"<polyline points='{path}' stroke='{colour}' stroke-dasharray='{dash}'/>")
        ends.append((y(points[-1][1]), label, colour))
    bottom, place = HEIGHT - BOTTOM, -math.inf
    for height, label, colour in sorted(ends):
        place = max(height + 4, place + APART)
        drawn.append(
            f"<text x='{WIDTH - RIGHT + 6}' y='{place:.1f}'><tspan style='fill:{colour}'>"
            f"\u25a0</tspan> {label}</text>"
        )
    drawn += [f"<text x='{x(k):.1f}' y='{HEIGHT - 8}' text-anchor='middle'>{k}</text>" for k in ks]
    return (
        f"<div class='scroll'><svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        f"aria-label='{html.escape(title)} over k samples'>{''.join(drawn)}"
        f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{bottom}' y2='{bottom}'/>"
        f"<line class='axis' x1='{LEFT}' x2='{LEFT}' y1='{TOP}' y2='{bottom}'/>"
        f"<text x='{LEFT}' y='{TOP - 8}'>{high:.3g}</text><text x='{LEFT - 6}' y='{bottom}' "
        f"text-anchor='end'>{low:.3g}</text></svg></div>"
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _saved(sampling: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{ARMS[name][2]}<td class='n'>{_number(saved['pass'])}<td class='n'>"
        f"{_number(saved['frozen_samples'], 1)}<td class='n'>{_number(saved['samples'], 1)}<td "
        f"class='n'>{_number(saved['ratio'], 2)}<td class='n'>{_interval(saved['ratio_ci'], 2)}<td "
        f"class='n'>{_number(saved.get('predicted'), 2)}</tr>"
        for name, saved in sampling["samples_saved"].items()
    )
    return (
        "<h3>Samples saved</h3><p class='soft'>At the highest pass@k that both reach. Predicted is "
        "what the frozen model's mixture of strategies, with a latent for each, would save.</p>"
        "<div class='scroll'><table><tr><th>arm<th class='n'>pass@k<th class='n'>frozen samples<th "
        "class='n'>samples<th class='n'>times fewer<th class='n'>95 % interval<th class='n'>"
        f"predicted</tr>{rows}</table></div>"
    )


def _diversity(arms: dict[str, Any]) -> str:
    names = [
        name for name in DIVERSITY if any(a["diversity"][name] is not None for a in arms.values())
    ]
    head = "".join(f"<th class='n'>{name}" for name in names)
    rows = "".join(
        f"<tr><td>{ARMS[arm][2]}"
        + "".join(f"<td class='n'>{_number(figures['diversity'][name])}" for name in names)
        + "</tr>"
        for arm, figures in arms.items()
    )
    data = [a["diversity"]["reference_bleu_data"] for a in arms.values()]
    note = (
        f" The data's own completions have a leave-one-out BLEU of {data[0]:.1f}."
        if data and data[0] is not None
        else ""
    )
    return (
        "<h3>Diversity</h3><p class='soft'>Higher is more varied, but for self_bleu. vendi is an "
        f"effective number of samples.{note}</p><div class='scroll'><table><tr><th>arm{head}</tr>"
        f"{rows}</table></div>"
    )


def _transmission(found: dict[str, Any]) -> str:
    if found["accuracy"] is None:
        return ""
    latents = range(len(found["confusion"]))
    rows = []
    for k, row in enumerate(found["confusion"]):
        total = sum(row) or 1
        cells = "".join(
            f"<td class='cell' style='background:rgba(var(--heat),{0.6 * count / total:.2f})'>"
            f"{count / total:.0%}"
            for count in row
        )
        rows.append(f"<tr><th>z{k}{cells}</tr>")
    head = "".join(f"<th class='n'>z{k}" for k in latents)
    return (
        "<h3>Is z read back?</h3><p class='soft'>A row for the latent asked for, a column for the "
        f"one that the posterior reads in what was written: {found['accuracy']:.0%} agree, "
        f"{found['information']:.2f} of at most {math.log(len(latents)):.2f} nats.</p>"
        f"<div class='scroll'><table><tr><th>latent{head}</tr>{''.join(rows)}</table></div>"
    )


# On the terminal


def render_sampling(sampling: dict[str, Any]) -> Table:
    """The table of the arms; fits 80 columns."""
    ks = [sampling["k"][place] for place in _shown(len(sampling["k"]))]
    table = Table(
        title=f"{sampling['samples']} samples a prompt, {sampling['prompts']:,} prompts",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in ("figure", *(ARMS[arm][2] for arm in sampling["arms"])):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for row in rows_of(sampling, ks):
        table.add_row(*row)
    return table


def _shown(count: int) -> list[int]:
    """At most four of the k: the first, the last and two between."""
    return sorted({round(i * (count - 1) / 3) for i in range(4)})


def rows_of(sampling: dict[str, Any], ks: Sequence[int]) -> Iterator[list[str]]:
    """A row for each figure: its name, and its value in every arm."""
    arms = sampling["arms"].values()
    for key, name in (("pass_at_k", "pass@"), ("strategies_at_k", "strategies@")):
        if not any(arm[key] for arm in arms):
            continue
        for k in ks:
            place = sampling["k"].index(k)
            yield [f"{name}{k}", *(_number(arm[key][place]) for arm in arms)]
    yield [
        f"distinct@{ks[-1]}",
        *(_number(arm["distinct_at_k"][-1]) for arm in arms),
    ]
    if saved := sampling["samples_saved"]:
        of_arm = [saved.get(name, {}) for name in sampling["arms"]]
        yield ["times fewer samples", *(_number(each.get("ratio"), 2) for each in of_arm)]
        yield ["  95 % interval", *(_interval(each.get("ratio_ci"), 1) for each in of_arm)]
        yield ["  predicted", *(_number(each.get("predicted"), 2) for each in of_arm)]
    for name in DIVERSITY:
        if any(arm["diversity"][name] is not None for arm in arms):
            yield [name, *(_number(arm["diversity"][name], 3) for arm in arms)]
    found = sampling["transmission"]
    if found["accuracy"] is not None:
        yield [f"z read back: {found['accuracy']:.0%}", *("" for _ in arms)]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(ci: Sequence[float] | None, digits: int) -> str:
    return "" if ci is None else f"{ci[0]:.{digits}f} to {ci[1]:.{digits}f}"
