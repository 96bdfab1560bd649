"""How `sampling` is shown: a table on the terminal, curves with bands and tables on the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from twcli.pages import charts
from twcli.pages.text import interval, number

ARMS = {
    "frozen": "original model",
    "even": "run, evenly",
    "proportional": "run, by router",
    "router": "run, router drawn",
}
CHARTS = (
    (
        "pass_at_k",
        "pass@k",
        "share of the prompts",
        "Prompts with a right answer among k samples.",
    ),
    (
        "strategies_at_k",
        "Strategies covered",
        "strategies",
        "Different strategies among k samples, by the judge.",
    ),
    (
        "distinct_at_k",
        "Distinct completions",
        "share of k samples",
        "Samples that are different texts.",
    ),
)
DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "vendi", "self_bleu", "reference_bleu")


def section(sampling: dict[str, Any] | None) -> dict[str, Any] | None:
    """The page's part: `note`, `charts`, `tables` (id, caption, columns, rows) and the `matrix` of
    the latents that were asked for and read back; None where nothing was sampled.
    """
    if sampling is None:
        return None
    arms = sampling["arms"]
    drawn = []
    for key, title, unit, note in CHARTS:
        if any(arm[key] for arm in arms.values()):
            chart = _chart(sampling["k"], arms, key, title, unit, note)
            drawn += [chart] if chart else []
    tables = [_diversity(arms)]
    if sampling["samples_saved"]:
        tables.insert(0, _saved(sampling))
    return {
        "note": f"{sampling['samples']} samples of each of {sampling['prompts']:,} prompts, the "
        f"run's at temperature {sampling['temperature']:g}{_frozen_note(arms)}. "
        "Bands are 95% bootstrap intervals over prompts.",
        "charts": drawn,
        "tables": tables,
        "matrix": _transmission(sampling["transmission"]),
    }


def _frozen_note(arms: dict[str, Any]) -> str:
    """At which temperature the original model was sampled, as a clause of a chart's note."""
    if "frozen" not in arms:
        return "; the original model was not found"
    temperature = arms["frozen"]["temperature"]
    return f", the original model's at {temperature:g}, its best of a few"


def _chart(
    ks: Sequence[int], arms: dict[str, Any], key: str, title: str, unit: str, note: str
) -> dict[str, Any] | None:
    """A figure of each arm over the number of samples, with its interval.

    Args:
        key: of the figure in an arm.
    """
    lines = []
    for name, arm in arms.items():
        points = []
        band = []
        intervals = arm[f"{key}_ci"]
        for k, mean, ends in zip(ks, arm[key], intervals, strict=True):
            if mean is None:
                continue
            points.append((k, mean))
            if ends:
                band.append((k, *ends))
        lines.append(charts.Line(ARMS[name], points, band))
    return charts.curves(title, lines, unit=unit, note=note, axis="k samples", log_axis=True)


def _saved(sampling: dict[str, Any]) -> dict[str, Any]:
    """Rows of the table of samples saved, with what the mixture of strategies predicts."""
    columns = ("arm", "pass@k", "original's samples", "samples", "times fewer", "95% interval")
    rows = []
    for name, saved in sampling["samples_saved"].items():
        rows.append(
            [
                ARMS[name],
                number(saved["pass"], 3),
                number(saved["frozen_samples"], 1),
                number(saved["samples"], 1),
                number(saved["ratio"]),
                interval(saved["ratio_ci"]),
                number(saved.get("predicted")),
            ]
        )
    return {
        "id": "saved",
        "caption": "Samples saved, at the highest pass@k that both reach. Predicted is what the "
        "original model's mixture of strategies, with a latent for each, would save.",
        "columns": [(name, name != "arm") for name in (*columns, "predicted")],
        "rows": rows,
    }


def _diversity(arms: dict[str, Any]) -> dict[str, Any]:
    """Rows of the table of diversity, of the measures that any arm has."""
    measured = [arm["diversity"] for arm in arms.values()]
    names = [name for name in DIVERSITY if any(of[name] is not None for of in measured)]
    data = [of["reference_bleu_data"] for of in measured]
    if data and data[0] is not None:
        note = f" The data's own completions have a leave-one-out BLEU of {data[0]:.1f}."
    else:
        note = ""
    return {
        "id": "diversity",
        "caption": "Diversity: higher is more varied, but for self_bleu. vendi is an effective "
        f"number of samples.{note}",
        "columns": [("arm", False), *((name, True) for name in names)],
        "rows": [
            [ARMS[arm], *(number(figures["diversity"][name], 3) for name in names)]
            for arm, figures in arms.items()
        ],
    }


def _transmission(found: dict[str, Any]) -> dict[str, Any] | None:
    """Table of the latent asked for against the one read back from what was written."""
    if found["accuracy"] is None:
        return None
    latents = len(found["confusion"])
    caption = (
        "Is z read back? A row for the latent asked for, a column for the one that the posterior "
        f"reads in what was written: {found['accuracy']:.0%} agree, {found['information']:.2f} of "
        f"at most {math.log(latents):.2f} nats."
    )
    return table_of_shares(
        found["confusion"], [f"z{k}" for k in range(latents)], caption, "completions"
    )


def table_of_shares(
    counts: Sequence[Sequence[float]], columns: Sequence[str], caption: str, whole: str
) -> dict[str, Any]:
    """Counts of each latent, (K, C), as shares of its row.

    Args:
        whole: what a row adds up to.
    """
    rows = []
    for row in counts:
        total = sum(row)
        cells = [value / total if total else 0.0 for value in row]
        whole_number = total == int(total)
        text = f"{total:,.10g}" if whole_number else f"{total:,.1f}"
        rows.append({"cells": cells, "total": text})
    return {"caption": caption, "columns": list(columns), "whole": whole, "rows": rows}


# On the terminal


def render_sampling(sampling: dict[str, Any]) -> Table:
    """The table of the arms; fits 80 columns."""
    ks = [sampling["k"][place] for place in _shown(len(sampling["k"]))]
    table = Table(
        title=f"{sampling['samples']} samples per prompt, {sampling['prompts']:,} prompts",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in ("figure", *(ARMS[arm] for arm in sampling["arms"])):
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
            yield [f"{name}{k}", *(number(arm[key][place], 3) for arm in arms)]
    yield [
        f"distinct@{ks[-1]}",
        *(number(arm["distinct_at_k"][-1], 3) for arm in arms),
    ]
    if saved := sampling["samples_saved"]:
        of_arm = [saved.get(name, {}) for name in sampling["arms"]]
        yield ["times fewer samples", *(number(each.get("ratio")) for each in of_arm)]
        yield ["  95% interval", *(interval(each.get("ratio_ci"), 1) for each in of_arm)]
        yield ["  predicted", *(number(each.get("predicted")) for each in of_arm)]
    for name in DIVERSITY:
        if any(arm["diversity"][name] is not None for arm in arms):
            yield [name, *(number(arm["diversity"][name], 3) for arm in arms)]
    found = sampling["transmission"]
    if found["accuracy"] is not None:
        yield [f"z read back: {found['accuracy']:.0%}", *("" for _ in arms)]
