"""`report.html`: one page that needs no network and runs no script. It shows what z means and how
well.

Colours are those of Okabe and Ito, which colour-blind people can distinguish; colour is never the
only cue. Shapes: K latents.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

from twcli.evaluation import curves
from twcli.evaluation.report import mapping_line, rows_of
from twcli.training.diagnostics import pooled_information

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a", "#b5a100")
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #5f5f5f; --line: #d5d5d5;
        --heat: 0,114,178; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee; --paper: #161616; --soft: #adadad; --line: #444; --heat: 86,180,233;
          --mark: #56b4e9; }
}
* { box-sizing: border-box; }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
       max-width: 68rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
.scroll { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.cell { text-align: right; padding: .2rem .6rem; min-width: 5rem; border: 1px solid var(--line);
          font-variant-numeric: tabular-nums; }
.soft { color: var(--soft); }
.verdict { border-left: .3rem solid #009e73; padding: .5rem 1rem; }
.warning { border-left: .3rem solid #d55e00; padding: .5rem 1rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.box { border: 1px solid var(--line); border-radius: .3rem; padding: .6rem .8rem; }
.big { font-size: 1.6rem; font-variant-numeric: tabular-nums; }
.text { white-space: pre-wrap; font: 13px/1.7 ui-monospace, monospace; margin: .3rem 0; }
.latent { border-top: .35rem solid; }
.scroll table { min-width: 34rem; }
svg { width: 46rem; max-width: none; height: auto; display: block; }
svg.bar { width: 9rem; height: .8rem; display: inline-block; }
svg text { fill: var(--soft); font-size: 13px; }
svg .axis { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 2; }
"""
POOLED_STEPS = 25  # number of steps that each point of a curve is averaged over
POINTS = 200  # of a curve, at most
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 240, 46, 70, 24, 26
Series = tuple[str, list[tuple[float, float]]]  # name and points


def render_html(
    result: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    evidence: dict[str, Any] | None = None,
) -> str:
    """The page.

    Args:
        result: the result of `evaluate`.
        metrics: the run's metrics, step by step.
        settings: the run's settings, by name.
        evidence: as `evaluate.evidence_of` returns it; sections without data are omitted.
    """
    evidence = evidence or {}
    parts = [
        _head(result),
        _samples(evidence),
        _matrix(evidence),
        _router(evidence),
        curves.section(result.get("sampling")),
        _training(metrics),
        _heat(evidence),
        _figures(result),
        _settings(settings, evidence),
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' "
        "content='width=device-width, initial-scale=1'>"
        f"<title>twcli run</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def _head(result: dict[str, Any]) -> str:
    posterior, log_k = result["posterior"], math.log(result["latents"])
    cards = [
        ("I(z; y)", f"{posterior['mutual_information']:.2f} nats", f"at most {log_k:.2f}"),
        ("effective latents", f"{posterior['usage']:.1f}", f"of {result['latents']}"),
    ]
    for title, value, note in (
        (
            "strategy accuracy",
            result["strategy_accuracy"],
            f"majority guess: {_known(result['alignment']['majority'])}",
        ),
        ("likelihood gain", result["likelihood"]["gain"], "nats per example over the frozen model"),
    ):
        if value is not None:
            cards.append((title, f"{value:.2f}", note))
    verdict = result["verdict"]
    tone = "verdict" if verdict["kind"] == "works" else "warning"
    sentence = (
        f"<p class='{tone}'><b>{html.escape(verdict['sentence'])}</b> "
        f"{html.escape(verdict['advice'])}</p>"
    )
    names = "; ".join(mapping_line(result).splitlines()[1:])
    boxes = "".join(
        f"<div class='box'>{title}<div class='big'>{value}</div><span "
        f"class='soft'>{note}</span></div>"
        for title, value, note in cards
    )
    return (
        f"<h1>twcli run</h1><p class='soft'>{result['records']:,} held-out records, "
        f"{result['prompts']:,} prompts, {result['latents']} latents. "
        f"{html.escape(names)}</p>{sentence}<div class='grid'>{boxes}</div>"
    )


def _known(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _figures(result: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{section}<td>{key}<td class='n'>{value}<td class='n'>{interval}<td "
        f"class='soft'>{note}</tr>"
        for section, key, value, interval, note in rows_of(result)
    )
    return (
        "<h2>All figures</h2><div class='scroll'><table><tr><th>section<th>figure<th "
        "class='n'>value<th class='n'>95 % interval"
        f"<th>meaning</tr>{rows}</table></div>"
    )


# During training


def _training(metrics: Sequence[dict[str, Any]]) -> str:
    if not metrics:
        return ""
    picked = sorted({*range(0, len(metrics), max(1, len(metrics) // POINTS)), len(metrics) - 1})
    windows = [(metrics[i]["step"], metrics[max(0, i - POOLED_STEPS) : i + 1]) for i in picked]
    parts = []
    if "posterior_mass" in metrics[0]:
        parts.append(
            "<h2>Posterior usage during training</h2><p class='soft'>Share of the records that "
            f"the posterior assigns to each latent, over the last {POOLED_STEPS} steps. "
            "A single band means that the other latents are dead.</p>" + _bands(windows)
        )
    masses = metrics[0].get("posterior_mass", [0.0])
    parts.append(
        "<h2>Mutual information I(z; y)</h2>"
        + _lines(
            [("nats", [(step, pooled_information(window)[0]) for step, window in windows])],
            "nats, at most log K",
            top=math.log(len(masses)),
        )
    )
    parts.append("<h2>Loss</h2>" + _lines([("loss", _means(windows, "loss"))], "nats per token"))
    amplified = [
        (name, _means(windows, key))
        for name, key in (("measured", "amplification"), ("T / t0", "expected_amplification"))
    ]
    if any(points for _, points in amplified):
        parts.append(
            "<h2>Amplification of the posterior's gradient</h2><p class='soft'>By weighting with "
            "b_t: as measured, and as predicted from the share of informative tokens. "
            "1 means no effect.</p>" + _lines(amplified, "times")
        )
    return "".join(parts)


def _means(
    windows: Sequence[tuple[int, Sequence[dict[str, Any]]]], key: str
) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for step, window in windows:
        known = [m[key] for m in window if m.get(key) is not None]
        if known:
            points.append((step, sum(known) / len(known)))
    return points


def _bands(windows: Sequence[tuple[int, Sequence[dict[str, Any]]]]) -> str:
    latents = len(windows[0][1][0]["posterior_mass"])
    shares = []
    for step, window in windows:
        total = sum(m["records"] for m in window)
        shares.append(
            (
                step,
                [
                    sum(m["records"] * m["posterior_mass"][k] for m in window) / total
                    for k in range(latents)
                ],
            )
        )
    x, y = _scales([step for step, _ in shares], 0.0, 1.0)
    below, drawn = [0.0] * len(shares), []
    for k in range(latents):
        above = [low + share[k] for low, (_, share) in zip(below, shares, strict=True)]
        outline = [(x(step), y(high)) for high, (step, _) in zip(above, shares, strict=True)]
        outline += [
            (x(step), y(low)) for low, (step, _) in reversed(list(zip(below, shares, strict=True)))
        ]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in outline)
        drawn.append(
            f"<polygon points='{points}' fill='{COLOURS[k % len(COLOURS)]}' stroke='var(--paper)'/>"
        )
        if above[-1] - below[-1] > 0.04:  # space for a name
            drawn.append(
                f"<text x='{WIDTH - RIGHT + 6}' y='{y((above[-1] + below[-1]) / 2) + 4:.1f}'>z{k} "
                f"{shares[-1][1][k]:.0%}</text>"
            )
        below = above
    return _svg("posterior usage", "".join(drawn), shares[-1][0], "0", "100 %")


def _lines(series: Sequence[Series], unit: str, top: float = 0.0) -> str:
    """At most two curves, the second dashed; the axis reaches `top` at least, so that next to
    nothing looks like next to nothing.
    """
    steps = [step for _, points in series for step, _ in points]
    values = [value for _, points in series for _, value in points]
    low, high = min(0.0, *values), max(top, *values)
    x, y = _scales(steps, low, high)
    drawn = []
    for number, (name, points) in enumerate(series):
        if not points:
            continue
        colour, dash, sign = (
            ("var(--mark)", "", "\u2014"),
            ("#d55e00", " stroke-dasharray='6 4'", "- -"),
        )[number]
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        drawn.append(f"<polyline points='{path}' stroke='{colour}'{dash}/>")
        if len(series) > 1:
            drawn.append(
                f"<text x='{WIDTH - RIGHT - 110 * (1 - number)}' y='{TOP - 8}' text-anchor='end'>"
                f"<tspan style='fill:{colour}'>{sign}</tspan> {name}</text>"
            )
    return _svg(unit, "".join(drawn), max(steps), f"{low:.3g}", f"{high:.3g} {unit}")


def _scales(
    steps: Sequence[float], low: float, high: float
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    first, last, spread = min(steps), max(steps), (high - low) or 1.0
    across = (WIDTH - LEFT - RIGHT) / ((last - first) or 1)
    return (lambda step: LEFT + across * (step - first)), (
        lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / spread
    )


def _svg(name: str, drawn: str, last: float, low: str, high: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    return (
        f"<div class='scroll'><svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{name} "
        f"over {last} steps'>{drawn}"
        f"<line class='axis' x1='{LEFT}' x2='{right}' y1='{bottom}' y2='{bottom}'/>"
        f"<line class='axis' x1='{LEFT}' x2='{LEFT}' y1='{TOP}' y2='{bottom}'/>"
        f"<text x='{LEFT}' y='{TOP - 8}'>{high}</text><text x='{LEFT - 6}' y='{bottom}' "
        f"text-anchor='end'>{low}</text>"
        f"<text x='{right}' y='{HEIGHT - 6}' text-anchor='end'>step {last}</text></svg></div>"
    )


# What z means


def _router(evidence: dict[str, Any]) -> str:
    if "posterior_mean" not in evidence:
        return ""
    rows = "".join(
        f"<tr><th>z{k}{_bar_cell(q, COLOURS[k % len(COLOURS)])}{_bar_cell(p, 'var(--soft)')}</tr>"
        for k, (q, p) in enumerate(
            zip(evidence["posterior_mean"], evidence["router_mean"], strict=True)
        )
    )
    return (
        "<h2>Router against posterior</h2><p class='soft'>Mean over the records. "
        "Where they differ, the router does not match the data.</p><div "
        f"class='scroll'><table><tr><th>latent<th>posterior<th>router</tr>{rows}</table></div>"
    )


def _bar_cell(share: float, colour: str) -> str:
    return (
        f"<td><svg class='bar' viewBox='0 0 100 10' preserveAspectRatio='none'>"
        f"<rect width='{100 * share:.1f}' height='10' fill='{colour}'/></svg> {share:.1%}"
    )


def _matrix(evidence: dict[str, Any]) -> str:
    if not evidence.get("strategies"):
        return ""
    head = "".join(f"<th class='n'>{html.escape(name)}" for name in evidence["strategies"])
    rows = []
    for k, row in enumerate(evidence["matrix"]):
        total = sum(row)
        cells = "".join(
            "<td class='cell' "
            f"style='background:rgba(var(--heat),{0.6 * value / total if total else 0:.2f})'>"
            f"{value / total if total else 0:.0%}"
            for value in row
        )
        rows.append(f"<tr><th>z{k}{cells}<td class='n'>{total:.1f}</tr>")
    return (
        "<h2>Latents and strategies</h2><p class='soft'>For each latent, "
        "the share of its posterior mass on records of each strategy. Ideally each row has one "
        "coloured cell, in a different column.</p><div class='scroll'><table><tr>"
        f"<th>latent{head}<th class='n'>records</tr>{''.join(rows)}</table></div>"
    )


def _samples(evidence: dict[str, Any]) -> str:
    parts = []
    for sample in evidence.get("samples", ()):
        boxes = "".join(
            "<div class='box latent' "
            f"style='border-top-color:{COLOURS[k % len(COLOURS)]}'><b>z{k}</b>"
            f"<div class='text'>{html.escape(y) or '<i>(empty)</i>'}</div></div>"
            for k, y in enumerate(sample["ys"])
        )
        parts.append(
            f"<p class='text'>{html.escape(sample['x'])}</p><div class='grid'>{boxes}</div>"
        )
    return (
        "<h2>The same prompt under each latent</h2><p class='soft'>Greedy decoding.</p>"
        + "".join(parts)
        if parts
        else ""
    )


def _heat(evidence: dict[str, Any]) -> str:
    texts = evidence.get("texts", ())
    if not texts:
        return ""
    most = max((nats for text in texts for _, nats in text["pieces"]), default=0.0) or 1.0
    parts = []
    for text in texts:
        spans = "".join(
            f"<span title='{nats:.2f} nats' "
            f"style='background:rgba(var(--heat),{0.65 * nats / most:.2f})'>"
            f"{html.escape(piece)}</span>"
            for piece, nats in text["pieces"]
        )
        parts.append(
            f"<div class='box'><span class='soft text'>{html.escape(text['x'])}</span><div "
            f"class='text'>{spans}</div></div>"
        )
    return (
        "<h2>Token weights b_t</h2><p class='soft'>NLL of each token of y under the frozen model; "
        f"the strongest colour is {most:.1f} nats. Coloured tokens are those that "
        "x and the earlier tokens do not determine: they get the weight.</p>"
        f"<div class='grid'>{''.join(parts)}</div>"
    )


def _settings(settings: dict[str, Any], evidence: dict[str, Any]) -> str:
    tables = [("Settings", settings)] + (
        [("Provenance", evidence["provenance"])] if "provenance" in evidence else []
    )
    return "".join(
        f"<h2>{title}</h2><div class='scroll'><table>"
        + "".join(
            f"<tr><td>{html.escape(str(key))}<td>{html.escape(str(value))}</tr>"
            for key, value in values.items()
        )
        + "</table></div>"
        for title, values in tables
    )
