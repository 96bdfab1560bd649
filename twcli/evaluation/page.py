"""`report.html`: what z means and how well, on one page that needs no network. `twcli train` writes
it with what it knows, `twcli eval` again with all figures, and for the runs of several seeds one
page that lays them over each other.

What is drawn is decided here, how it looks in `twcli/pages`. Shapes: K latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twcli.evaluation import curves, training_charts
from twcli.evaluation.report import not_measured, rows_of
from twcli.evaluation.verdict import gains_disagree
from twcli.models.card import public_place
from twcli.pages import charts
from twcli.pages.differences import marked
from twcli.pages.rendering import render
from twcli.pages.text import cut, interval, number, share
from twcli.training.defaults import duration

MOST_CHARACTERS = 2000  # of a sample
SECTIONS = {
    "runs": "The runs",
    "latents": "The latents",
    "samples": "The same prompt under each latent",
    "strategies": "Latents and strategies",
    "map": "Map",
    "router": "Router against posterior",
    "sampling": "Samples: the original model against the run",
    "training": "During training",
    "weights": "Token weights b_t",
    "figures": "All figures",
    "settings": "Settings",
}
FIGURES = [
    ("section", False),
    ("figure", False),
    ("value", True),
    ("95% interval", True),
    ("meaning", False),
]
COMPARISON = [
    ("figure", False),
    ("this run", True),
    ("95% interval", True),
    ("original model", True),
    ("to be held against", False),
]

Metrics = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class About:
    """What a page is of.

    Attributes:
        run: the folder.
        date: of the page, ISO 8601.
        data: what the run was evaluated on; None at the end of a training.
        seconds: that the training took; None where it is not known.
        names: the latents' names, as far as people gave them any.
        names_file: where they are given; None where the run was trained without such a file.
    """

    run: str
    date: str
    data: str | None = None
    seconds: float | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    names_file: str | None = None


def evaluation_page(
    result: dict[str, Any],
    metrics: Metrics,
    settings: dict[str, Any],
    about: About,
    evidence: dict[str, Any] | None = None,
) -> str:
    """The page of `twcli eval`.

    Args:
        result: the result of `evaluate`.
        metrics: the run's metrics, step by step.
        settings: the run's settings, by name.
        evidence: as `evidence.evidence_of` returns it; sections without data are omitted.
    """
    sizes = f"{result['records']:,} of {result['prompts']:,} prompts"
    return _page(
        settings,
        about,
        "twcli eval",
        more_facts=[("Records", sizes), ("Latents", str(result["latents"]))],
        verdict=result["verdict"],
        comparison=_comparison(result),
        cards=_cards(result, evidence or {}, about),
        evidence=evidence or {},
        training=training_charts.of_run(metrics),
        sampling=curves.section(result.get("sampling")),
        figures=[[section or "all", *row] for section, *row in rows_of(result) if row[1] != "-"],
        not_measured=not_measured(result),
    )


def training_page(
    verdict: dict[str, Any],
    retention: Sequence[dict[str, Any]],
    metrics: Metrics,
    settings: dict[str, Any],
    about: About,
    evidence: dict[str, Any],
) -> str:
    """The page at the end of `twcli train`.

    Args:
        verdict: kind, sentence and advice.
        retention: an entry for each latent, as in the result of `evaluate`.
        evidence: `latent_cards`, `map`, `texts` and `provenance`, as far as there are any.
    """
    result = {"verdict": verdict, "retention": retention, "alignment": {"mapping": None}}
    return _page(
        settings,
        about,
        "twcli train",
        more_facts=[("Latents", str(settings["latents"]))],
        verdict=verdict,
        comparison=[],
        cards=_cards(result, evidence, about),
        evidence=evidence,
        training=training_charts.of_run(metrics),
    )


def runs_page(
    results: Mapping[str, dict[str, Any]],
    metrics: Mapping[str, Metrics],
    compared: dict[str, Any],
    settings: dict[str, Any],
    about: About,
) -> str:
    """The page of several runs on the same data.

    Args:
        results, metrics: of each run, by the name of its folder.
        compared: as `several.compare` returns it.
    """
    best = compared["best"]
    sentence = f"{len(results)} runs."
    if best is not None:
        sentence = f"Best by expected alignment: {best}. {results[best]['verdict']['sentence']}"
    if best is not None:
        kind = results[best]["verdict"]["kind"]
    else:
        kind = "unknown"
    names = ("mean", "lowest", "highest")
    return _page(
        settings,
        about,
        "twcli eval",
        more_facts=[("Runs", str(len(results))), ("Latents", str(settings["latents"]))],
        verdict={"kind": kind, "sentence": sentence, "advice": ""},
        comparison=[],
        cards=[],
        evidence={},
        training=training_charts.of_runs(metrics),
        runs=[
            {
                "name": name,
                "link": f"{name}/report.html",
                "sentence": result["verdict"]["sentence"],
            }
            for name, result in results.items()
        ],
        figures=[
            [figure, *(number(compared[name][figure], 3) for name in names)]
            for figure in compared["mean"]
        ],
        figures_columns=[("figure", False), *((name, True) for name in names)],
    )


def _page(
    settings: dict[str, Any],
    about: About,
    command_name: str,
    *,
    more_facts: list[tuple[str, str]],
    verdict: dict[str, Any],
    comparison: list[list[str]],
    cards: list[dict[str, Any]],
    evidence: dict[str, Any],
    training: list[dict[str, Any]],
    sampling: dict[str, Any] | None = None,
    figures: Sequence[list[str]] = (),
    figures_columns: Sequence[tuple[str, bool]] = FIGURES,
    not_measured: Sequence[str] = (),
    runs: Sequence[dict[str, str]] = (),
) -> str:
    """The page: facts and verdict first, then what each latent writes, then the figures."""
    model, data = public_place(settings["model"]), public_place(settings["data"])
    facts = [("Date", about.date), ("Model", model), ("Trained on", data)]
    if about.data is not None:
        facts.append(("Evaluated on", public_place(about.data)))
    facts += more_facts
    if about.seconds is not None:
        facts.append(("Training took", duration(about.seconds)))
    texts = evidence.get("texts", ())
    most = max((nats for text in texts for _, nats in text["pieces"]), default=0.0) or 1.0
    shown = {
        "cards": cards,
        "whole": "the records",
        "renamed": evidence.get("renamed", 0.0),
        "samples": _samples(evidence),
        "matrices": _matrices(evidence),
        "map": charts.scatter(evidence.get("map")),
        "router": _router(evidence),
        "sampling": sampling,
        "training": training,
        "weights": [_heat(text, most) for text in texts],
        "figures": figures,
        "settings": _rows(settings),
        "figures_columns": figures_columns,
        "not_measured": not_measured,
        "runs": runs,
    }
    there = shown | {"latents": cards, "strategies": shown["matrices"]}
    return render(
        "run.html.jinja",
        title=f"{'Runs' if runs else 'Run'} {about.run}",
        command_name=command_name,
        facts=facts,
        contents=[(key, name) for key, name in SECTIONS.items() if there[key]],
        verdict_found=verdict,
        comparison=comparison,
        comparison_columns=COMPARISON,
        most=most,
        provenance=_rows(evidence.get("provenance", {})),
        **shown,
    )


def _rows(values: Mapping[str, Any]) -> list[list[str]]:
    """Names and values of a table, '-' for null."""
    rows = []
    for name, value in values.items():
        rows.append([str(name), "-" if value is None else str(value)])
    return rows


# Against the original model


def _comparison(result: dict[str, Any]) -> list[list[str]]:
    """Rows of `COMPARISON`: what is not known is left out, or a dash."""
    alignment = result["alignment"]
    K = result["latents"]
    chance = f"chance {share(1 / K)}"
    majority = max(alignment["majority"] or 0.0, 1 / K)
    rows = [
        _share_row(
            "asking for a latent gets its strategy",
            *_figure(alignment, "generation_one_to_one"),
            "cannot be asked",
            chance,
        ),
        _share_row(
            "the posterior finds the strategy",
            *_figure(alignment, "posterior_one_to_one"),
            "has no posterior",
            f"chance {share(majority)}",
        ),
        _share_row(
            "expected alignment (no labels are read)",
            *_figure(result, "score"),
            "cannot be asked",
            chance,
        ),
        *_mean_rows(result["retention"] or ()),
        *_sampling_rows(result.get("sampling")),
        _likelihood_row(result["likelihood"]),
        _information_row(result["posterior"], K),
    ]
    return [row for row in rows if row[1] != "-"]


def _figure(holder: dict[str, Any], key: str) -> tuple[float | None, list[float] | None]:
    """A figure and its interval, both None where it was not measured."""
    value = holder[key]
    ends = holder[f"{key}_ci"]
    return value, ends


def _share_row(
    name: str, value: float | None, ends: list[float] | None, original: str, against: str
) -> list[str]:
    """A row of the comparison, with the interval in words."""
    if value is None:
        return [name, "-", "", original, against]
    return [
        name,
        share(value),
        f"{share(ends[0])} to {share(ends[1])}" if ends else "",
        original,
        against,
    ]


def _mean_rows(retention: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Of one sample for each latent, and as many of the original model; means over latents."""
    rows = []
    for key, name, note in (
        (
            "obeyed",
            "samples of the strategy asked for",
            "original: of each one's share in the data",
        ),
        ("right", "samples with a right answer", "at temperature 1"),
    ):
        pairs = [(entry[key], entry[f"frozen_{key}"]) for entry in retention]
        known = [pair for pair in pairs if None not in pair]
        if known:
            ours = sum(value for value, _ in known) / len(known)
            frozen = sum(value for _, value in known) / len(known)
            rows.append([f"{name}, mean over latents", share(ours), "", share(frozen), note])
    return rows


def _sampling_rows(sampling: dict[str, Any] | None) -> list[list[str]]:
    """At the largest k; the latents evenly."""
    if sampling is None or "even" not in sampling["arms"]:
        return []
    even = sampling["arms"]["even"]
    frozen = sampling["arms"].get("frozen")
    rows = []
    for key, name, text in (
        ("pass_at_k", "prompts solved with", share),
        ("strategies_at_k", "strategies among", number),
        ("distinct_at_k", "different texts among", share),
    ):
        if not even[key] or even[key][-1] is None:
            continue
        ends = even[f"{key}_ci"][-1]
        if frozen and frozen[key]:
            before = frozen[key][-1]
        else:
            before = None
        rows.append(
            [
                f"{name} {sampling['k'][-1]} samples",
                text(even[key][-1]),
                f"{text(ends[0])} to {text(ends[1])}" if ends else "",
                "-" if before is None else text(before),
                "latents in turn",
            ]
        )
    return rows


def _likelihood_row(likelihood: dict[str, Any]) -> list[str]:
    """How well the run writes the records, against the original model."""
    ends = likelihood["marginal_nll_ci"]
    return [
        "nats to write a record (less is better)",
        number(likelihood["marginal_nll"]),
        interval(ends),
        number(likelihood["frozen_nll"]),
        "" if likelihood["gain"] is None else f"gain {likelihood['gain']:+.2f} nats",
    ]


def _information_row(posterior: dict[str, Any], latents: int) -> list[str]:
    """How much z says of the record."""
    ends = posterior["mutual_information_ci"]
    return [
        "what z says of the record, I(z; y) in nats",
        number(posterior["mutual_information"]),
        interval(ends),
        "0 (no latent)",
        f"at most log K = {math.log(latents):.2f}",
    ]


# What z means


def _cards(result: dict[str, Any], evidence: dict[str, Any], about: About) -> list[dict[str, Any]]:
    """Each latent with its name, what became of it, and where it is named."""
    failed = result["verdict"]["kind"] == "failed"  # at chance a mapping says nothing
    mapping: dict[str, str] = {}
    if not failed:
        mapping = result["alignment"]["mapping"] or {}
    retained = {entry["latent"]: entry for entry in result["retention"] or ()}
    cards = []
    for card in evidence.get("latent_cards", ()):
        k = card["latent"]
        name = about.names.get(k) or mapping.get(str(k))
        if k in retained:
            facts = _against(retained[k])
        else:
            facts = []
        rename = None  # of a latent that means something
        if card["share"] and not failed:
            rename = _rename(k, about)
        cards.append(card | {"name": name, "facts": facts, "rename": rename})
    return cards


def _rename(latent: int, about: About) -> list[str]:
    """Texts and code by turns."""
    if about.names_file is None:
        return ["", f"twcli export --run {about.run} --name {latent}=NAME"]
    return ["add ", '"name": "..."', f" on a line of latent {latent} of ", about.names_file]


def _against(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of a latent's completions, with the original model's figure."""
    ends = entry["gain_ci"]
    facts = [
        {
            "name": "nats to write one",
            "ours": number(entry["frozen_nll"] - entry["gain"]),
            "original": f"original {number(entry['frozen_nll'])}",
            "worse": entry["below"],
        },
        {
            "name": "gain",
            "ours": f"{entry['gain']:+.2f}",
            "original": f"{ends[0]:+.2f} to {ends[1]:+.2f}" if ends else "",
            "worse": entry["below"],
        },
    ]
    if gains_disagree(entry):
        low_high = entry["written_gain_ci"]
        written = {
            "name": "gain once it is chosen",
            "ours": f"{entry['written_gain']:+.2f}",
            "original": f"{low_high[0]:+.2f} to {low_high[1]:+.2f}" if low_high else "",
            "worse": entry["below"],
        }
        facts.append(written)
    for key, name, of_what in (
        ("obeyed", "obeyed", " of its share"),
        ("right", "right", ""),
    ):
        if entry.get(key) is not None:
            before = entry[f"frozen_{key}"]
            if before is None:
                original = ""
            else:
                original = f"original {share(before)}{of_what}"
            fact = {"name": name, "ours": share(entry[key]), "original": original, "worse": False}
            facts.append(fact)
    return facts


def _matrices(evidence: dict[str, Any]) -> list[dict[str, Any]]:
    """Tables of latents against strategies, as far as strategies are known."""
    found = []
    if asked := evidence.get("asked"):
        caption = (
            "A row for the latent asked for, a column for the strategy that the judge sees in what "
            "was written. Ideally each row has one coloured cell, in a different column."
        )
        found.append(
            curves.table_of_shares(asked["counts"], asked["strategies"], caption, "completions")
        )
    if evidence.get("strategies"):
        caption = (
            "A row for each latent: the share of its posterior mass on records of each strategy."
        )
        found.append(
            curves.table_of_shares(evidence["matrix"], evidence["strategies"], caption, "records")
        )
    return found


def _router(evidence: dict[str, Any]) -> list[list[str]]:
    """Rows of a table: the latents' shares of posterior and router."""
    posterior_K = evidence.get("posterior_mean", ())
    router_K = evidence.get("router_mean", ())
    rows = []
    for k, (q, p) in enumerate(zip(posterior_K, router_K, strict=True)):
        rows.append([f"z{k}", f"{q:.1%}", f"{p:.1%}"])
    return rows


def _samples(evidence: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompts with the run's completions, differences marked."""
    return [
        {"x": sample["x"], "ys": marked([cut(y, MOST_CHARACTERS) for y in sample["ys"]])}
        for sample in evidence.get("samples", ())
    ]


def _heat(text: dict[str, Any], most: float) -> dict[str, Any]:
    """A record's tokens with their nats and how strongly to colour them.

    Args:
        most: nats of the strongest colour.
    """
    return {
        "latent": text["latent"],
        "x": text["x"],
        "pieces": [(piece, nats, max(nats, 0.0) / most) for piece, nats in text["pieces"]],
        "more": text["more"],
    }
