"""Where the parts of a chart are, in percent of the area that its axes enclose.

A chart is drawn as SVG that follows the width of its window, while its texts keep their size. Each
function returns what the macro of its name in `parts.html.jinja` draws, and a description for who
does not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from twcli.pages.rendering import COLOURS
from twcli.pages.text import share as as_share

DASHES = 4  # of lines, in page.css
MOST_TICKS = 5
DASH = 4.0  # percent of a chart's width, of a curve that has one point
MAP_MARGIN = 4.0  # percent of the map's width on either side, so that labels fit
MAP_ASPECT = 1.5  # width over height, as in page.css
BAR_FROM, BAR_WIDTH = 13.0, 72.0  # percent of the chart; the rest is for its labels
TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)

Point = tuple[float, float]
Scale = Callable[[float], float]  # a value's place in percent


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        points: (x, y), x ascending.
        band: (x, low, high) of an interval around it.
        latent: the latent whose colour it takes; None for colour and dashes by its place.
    """

    name: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = field(default=())
    latent: int | None = None


def curves(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str,
    note: str = "",
    axis: str = "step",
    top: float | None = None,
    bottom: float | None = 0.0,
    log: bool = False,
    log_axis: bool = False,
    reference: tuple[float, str] | None = None,
    stages: Sequence[tuple[float, str]] = (),
) -> dict[str, Any] | None:
    """Lines over steps, or over another axis; None without points.

    Args:
        unit: of the values.
        axis: what is below.
        top, bottom: values that the chart reaches at least, so that next to nothing looks like it.
        log: whether values are on a logarithmic scale; those that are not above 0 are left out.
        log_axis: the same of what is below, with a tick at each point.
        reference: a value that the lines are held against, and what it is.
        stages: where each begins, and its name.
    """
    kept = [_kept(line, log) for line in lines]
    lines = [line for line in kept if line.points]
    if not lines:
        return None
    values = [value for line in lines for value in _values(line)]
    if reference is not None:
        values.append(reference[0])
    if not log:
        values += [value for value in (top, bottom) if value is not None]
    places = [x for line in lines for x, _ in line.points]
    first = min([*places, *(step for step, _ in stages)])
    last = max(places)
    across = _scale(first, last, log_axis)
    low, high = _padded(min(values), max(values), log)
    up = _scale(high, low, log)
    return {
        "title": title,
        "unit": unit,
        "note": note,
        "axis": axis,
        "y_ticks": _labelled(_log_ticks(low, high) if log else _ticks(low, high), up),
        "x_ticks": _labelled(sorted(set(places)) if log_axis else _ticks(first, last), across),
        "reference": reference and {"at": _percent(up(reference[0])), "label": reference[1]},
        "stages": [{"at": _percent(across(step)), "label": name} for step, name in stages],
        "lines": [_curve(line, number, across, up) for number, line in enumerate(lines)],
        "description": _description(title, unit, axis, lines, stages),
    }


def _curve(line: Line, number: int, across: Scale, up: Scale) -> dict[str, Any]:
    """What is drawn of the line with this number."""
    last_value = line.points[-1][1]
    return {
        "name": line.name,
        "style": _style(line, number),
        "cased": line.latent is not None,
        "path": _path(_seen([(across(x), up(y)) for x, y in line.points])),
        "band": _band(line, across, up),
        "last": f"{last_value:.3g}",
    }


def _seen(points: list[Point]) -> list[Point]:
    """The points of a curve; a single one as a dash, since a curve of one point shows nothing."""
    if len(points) > 1:
        return points
    ((x, y),) = points
    return [(max(x - DASH / 2, 0.0), y), (min(x + DASH / 2, 100.0), y)]


def _labelled(values: Sequence[float], scale: Scale) -> list[dict[str, str]]:
    """Ticks at these values."""
    ticks = []
    for value in values:
        ticks.append({"at": _percent(scale(value)), "label": f"{value:,.10g}"})
    return ticks


def bands(
    title: str, shares: Sequence[tuple[float, Sequence[float]]], *, note: str = ""
) -> dict[str, Any]:
    """How K shares of a whole change.

    Args:
        shares: (step, K floats that add up to 1), steps ascending.
    """
    steps = [step for step, _ in shares]
    across = _scale(steps[0], steps[-1], False)
    last = shares[-1][1]
    drawn = []
    below = [0.0] * len(steps)
    for k, last_share in enumerate(last):
        above = [low + each[k] for low, (_, each) in zip(below, shares, strict=True)]
        outline = [*_edge(steps, above, across), *reversed(_edge(steps, below, across))]
        drawn.append({"latent": k, "path": _path(outline), "last": last_share})
        below = above
    said = ", ".join(f"z{k} {as_share(value)}" for k, value in enumerate(last))
    return {
        "title": title,
        "note": note,
        "bands": drawn,
        "x_ticks": _labelled(_ticks(steps[0], steps[-1]), across),
        "description": f"{title}: at step {steps[-1]:,} {said}",
    }


def _edge(steps: Sequence[float], shares: Sequence[float], across: Scale) -> list[Point]:
    """One edge of a band, from left to right; a share of 0 is at the bottom."""
    edge = []
    for step, share in zip(steps, shares, strict=True):
        edge.append((across(step), 100 - 100 * share))
    return edge


def bars(proportions: Sequence[float]) -> dict[str, Any]:
    """A bar for each latent, and ticks for a few shares."""
    most = max(proportions, default=0.0) or 1.0
    step = next((step for step in TICK_STEPS if most / step <= MOST_TICKS), 0.25)
    last = math.ceil(most / step - 1e-9)
    scale = BAR_WIDTH / (last * step)
    ticks = []
    for i in range(last + 1):
        ticks.append({"share": i * step, "at": f"{BAR_FROM + scale * i * step:.2f}%"})
    drawn = []
    for share in proportions:
        width = scale * share
        end = BAR_FROM + width
        drawn.append({"share": share, "width": f"{width:.2f}%", "end": f"{end:.2f}%"})
    return {"ticks": ticks, "bars": drawn}


def scatter(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Points with one unit for both axes, in groups of a latent with its centre.

    Args:
        found: `points`, each (x, y, latent), -1 for no latent; None for no chart.
    """
    if not found or not found["points"]:
        return None
    points = found["points"]
    xs = [x for x, _, _ in points]
    ys = [y for _, y, _ in points]
    unit = max((max(xs) - min(xs)) / MAP_ASPECT, max(ys) - min(ys)) or 1.0
    scale = (100 - 2 * MAP_MARGIN) / unit
    middle_x = (max(xs) + min(xs)) / 2
    middle_y = (max(ys) + min(ys)) / 2
    groups: dict[int, list[Point]] = {}
    for x, y, latent in points:
        across = 50 + scale * (x - middle_x) / MAP_ASPECT
        down = 50 - scale * (y - middle_y)
        groups.setdefault(int(latent), []).append((round(across, 2), round(down, 2)))
    return {"count": len(points), "groups": [_group(k, groups[k]) for k in sorted(groups)]}


def _group(latent: int, points: list[Point]) -> dict[str, Any]:
    """The points of one latent, in its colour, with their mean."""
    centre = [round(sum(values) / len(points), 2) for values in zip(*points, strict=True)]
    known = latent >= 0
    return {
        "points": points,
        "centre": centre,
        "colour": f"c{latent % COLOURS}" if known else "none",
        "label": f"z{latent}" if known else "",
    }


# Scales, in percent


def _kept(line: Line, log: bool) -> Line:
    """The points and the band that can be drawn: on a logarithmic scale only what is above 0."""
    if not log:
        return line
    return Line(
        line.name,
        [(x, y) for x, y in line.points if y > 0],
        [(x, low, high) for x, low, high in line.band if low > 0],
        line.latent,
    )


def _values(line: Line) -> Iterator[float]:
    """All values that a line and its band reach."""
    yield from (y for _, y in line.points)
    yield from (value for _, *ends in line.band for value in ends)


def _scale(first: float, last: float, log: bool) -> Scale:
    """From `first` at 0 to `last` at 100."""
    position = math.log10 if log else float
    start = position(first)
    spread = position(last) - position(first)
    return lambda value: 100 * (position(value) - start) / (spread or 1.0)


def _padded(low: float, high: float, log: bool) -> Point:
    """With a margin above, and below where values are negative, so that no line is on the edge."""
    if log:
        return low / 1.1, high * 1.1
    margin = 0.06 * ((high - low) or 1.0)
    return (low - margin if low < 0 else low), high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers in between, at most `MOST_TICKS` and one."""
    spread = (high - low) or 1.0
    power = math.floor(math.log10(spread / MOST_TICKS))
    size = 10.0**power
    step = size
    for factor in (1, 2, 5, 10):
        step = size * factor
        if spread / step <= MOST_TICKS:
            break
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = [round(i * step, 12) for i in range(first, last + 1)]
    return ticks or [low]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, or the powers alone where they are many."""
    lowest = math.floor(math.log10(low))
    highest = math.ceil(math.log10(high))
    powers = range(lowest, highest + 1)
    by: tuple[int, ...] = (1,)
    if len(powers) <= 3:
        by = (1, 2, 5)
    found = [round(m * 10.0**power, 12) for power in powers for m in by]
    return [value for value in found if low <= value <= high] or [low, high]


def _percent(value: float) -> str:
    """As CSS and SVG have it."""
    return f"{value:.2f}%"


def _path(points: Iterator[Point] | Sequence[Point]) -> str:
    """Points as the attribute of an SVG path or polygon: x,y in pixels, to the hundredth."""
    pairs = [f"{x:.2f},{y:.2f}" for x, y in points]
    return " ".join(pairs)


def _band(line: Line, across: Scale, up: Scale) -> str:
    """Outline of a line's interval: along its upper end and back along its lower one."""
    above = []
    below = []
    for x, low, high in line.band:
        column = across(x)
        above.append((column, up(high)))
        below.append((column, up(low)))
    below.reverse()
    return _path([*above, *below])


def _style(line: Line, number: int) -> str:
    """The class of a line in page.css: its latent's colour or, without a latent, dashes by its
    number.
    """
    if line.latent is None:
        return f"d{number % DASHES}"
    return f"c{line.latent % COLOURS}"


def _description(
    title: str,
    unit: str,
    axis: str,
    lines: Sequence[Line],
    stages: Sequence[tuple[float, str]],
) -> str:
    """The chart in words: where each line begins and ends."""
    said = []
    for line in lines:
        (first, first_value), (last, last_value) = line.points[0], line.points[-1]
        said.append(
            f"{line.name} from {first_value:.3g} at {axis} {first:,.10g} "
            f"to {last_value:.3g} at {last:,.10g}"
        )
    said += [f"{name} begins at {axis} {step:,.10g}" for step, name in stages]
    return f"{title} in {unit}: {'; '.join(said)}"
