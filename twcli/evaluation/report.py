"""Results as tables for people and as JSON for programs. The page is `page.py`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from twcli.discovery.names_page import latent_line
from twcli.evaluation.verdict import evaluation_of, gains_disagree

# (section, key, meaning); section None is the top level
ROWS = (
    ("posterior", "mutual_information", "nats"),
    ("posterior", "usage", "effective number of latents"),
    ("posterior", "active", "latents with mass >= 0.01"),
    ("posterior", "kl", "posterior to router, nats"),
    ("posterior", "entropy", "of one record's posterior, nats"),
    ("posterior", "collapsed", "whether z says (almost) nothing of y"),
    ("router", "ece", "p(z|x) against the posterior"),
    ("router", "brier", "the same, squared, all latents"),
    ("router", "share_error", "worst latent's share"),
    ("alignment", "generation_one_to_one", "latent k writes its strategy"),
    ("alignment", "posterior_one_to_one", "posterior finds the strategy"),
    ("alignment", "generation_many_to_one", "latents may share a strategy"),
    ("alignment", "posterior_many_to_one", "the same for the posterior"),
    ("alignment", "majority", "always the commonest strategy"),
    ("alignment", "nmi", "normalised mutual information"),
    ("alignment", "ari", "adjusted Rand index"),
    ("alignment", "coverage_mean", "strategies found per prompt"),
    ("alignment", "full_coverage_rate", "prompts with all reached"),
    (None, "strategy_accuracy", "does z mean a strategy?"),
    (None, "score", "one to one, without labels"),
    (None, "answer_accuracy", "right answers, all latents"),
    ("likelihood", "frozen_nll", "original model, nats per example"),
    ("likelihood", "marginal_nll", "this model, exact sum over z"),
    ("likelihood", "gain", "nats per example"),
    ("diagnostics", "informative", "effective t0 / T of b_t"),
    ("diagnostics", "informative_tokens", "effective t0 in tokens"),
    ("diagnostics", "uniform_rows", "rows without b_t above tau"),
    ("diagnostics", "z_sensitivity", "spread of l_t(z), nats per token"),
    ("diagnostics", "z_sensitivity_weighted", "the same under the weights"),
    ("diagnostics", "z_sensitivity_sum", "the same, nats per example"),
    ("diagnostics", "amplification", "of q's gradient by the weights"),
    ("diagnostics", "expected_amplification", "T / t0"),
)
# Names by which figures are shown; all others are shown as their keys in JSON.
NAMES = {
    "mutual_information": "I(z; y)",
    "score": "expected alignment",
    "gain": "against the original",
}
# What is shown unless all is asked for: did it work, is it better than before.
FIRST = {
    "generation_one_to_one",
    "posterior_one_to_one",
    "coverage_mean",
    "answer_accuracy",
    "score",
    "mutual_information",
    "usage",
    "gain",
}
COUNTS = {"usage", "active"}  # numbers of latents: resampling says nothing about them
BAR_COLUMNS = 24  # of the histogram of b_t, which fits 80 columns
# nats above which a token is shown in the colour
SHADES = ((2.0, "red"), (1.0, "magenta"), (0.3, "yellow"))
NO_LABELS = "no strategy labels in the data and no --judge"
NO_JUDGE = "no --judge was given"
NO_NAMES = "the judge names no strategies"
NO_FROZEN = "original model not found; give --model"
NO_MASS = "no record has any b_t"
NO_GRADIENT = "the posterior is certain: no gradient"
NO_SEVERAL = "no two prompts with two completions"
NO_RECORDS = "no record has this latent"
NO_SPLIT = "nothing to score, or one prompt only"


def to_json(result: dict[str, Any]) -> str:
    """One JSON object on one line, as `twcli eval --json` prints it. Raises ValueError for a number
    that is not finite.
    """
    return json.dumps(result, allow_nan=False, ensure_ascii=False)


def rows_of(result: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """(section, key, value, 95 % interval, note) of every figure, as strings; if a value is null,
    the note says why.
    """
    for section, key, note in ROWS:
        holder = result[section] if section else result
        value = holder[key]
        if value is None:
            yield section or "", key, "-", "", _why_null(result, section, key)
            continue
        if key in COUNTS:
            interval = ""
        else:
            interval = _interval(holder.get(f"{key}_ci"), value)
        if key == "gain":
            note += f" ({'better' if value >= 0 else 'worse'})"
        elif key == "mutual_information":
            note = f"nats of at most {math.log(result['latents']):.3f}, log K"
        yield section or "", key, _number(value), interval, note
    yield from _retention_rows(result)


def _retention_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """What became of each latent's completions, nats an example."""
    found = {entry["latent"]: entry for entry in result.get("retention") or ()}
    if result["likelihood"]["frozen_nll"] is None:
        why = NO_FROZEN
    else:
        why = NO_RECORDS
    for latent in range(result["latents"]):
        entry = found.get(latent)
        key = f"z{latent}"
        if entry is None:
            yield "retention", key, "-", "", why
            continue
        note = "BELOW the original" if entry["below"] else "vs the original"
        note += f"; {entry['retained']:.0%} kept"
        if gains_disagree(entry):
            note += f"; {entry['written_gain']:+.3f} once the latent is chosen"
        if entry["obeyed"] is not None:
            note += f"; obeyed {entry['obeyed']:.0%}" + _before(entry["frozen_obeyed"])
        if entry["right"] is not None:
            note += f"; right {entry['right']:.0%}" + _before(entry["frozen_right"])
        interval = _interval(entry["gain_ci"], entry["gain"])
        yield "retention", key, f"{entry['gain']:+.3f}", interval, note


def _before(value: float | None) -> str:
    """What a figure was before training, in brackets."""
    if value is None:
        return ""
    return f" (before {value:.0%})"


def _number(value: Any) -> str:
    """As tables have it: three decimals, or yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def _interval(ci: Sequence[float] | None, value: float) -> str:
    """With the value in it: resamples of an estimate that has a bias may all lie on one side."""
    if ci is None:
        return ""
    low = min(ci[0], value)
    high = max(ci[1], value)
    return f"{low:.3f} to {high:.3f}"


def _why_null(result: dict[str, Any], section: str | None, key: str) -> str:
    """Why a figure is null: what would have to be given."""
    alignment = result["alignment"]
    if section == "diagnostics":
        if result["diagnostics"]["uniform_rows"] is None:
            return NO_FROZEN
        return NO_GRADIENT if key == "amplification" else NO_MASS
    if key in ("frozen_nll", "gain"):
        return NO_FROZEN
    if key == "score":
        if result["likelihood"]["frozen_nll"] is None:
            return NO_FROZEN
        return NO_SEVERAL
    if key == "answer_accuracy":
        if result.get("judge") is None:
            return NO_JUDGE
        return "the judge returned no correctness"
    if alignment["nmi"] is None:
        return _no_labels(result)
    if (
        key in ("posterior_one_to_one", "posterior_many_to_one", "strategy_accuracy")
        or alignment["coverage_mean"] is not None
    ):
        return NO_SPLIT
    if result.get("judge") is None:
        return NO_JUDGE
    return NO_NAMES


def _no_labels(result: dict[str, Any]) -> str:
    """Which field was looked for, and what names another."""
    labels = result.get("labels")
    if labels is None:  # of an earlier version
        return NO_LABELS
    there = ""
    if labels["unread"]:
        there = f"; the records have {', '.join(labels['unread'])}"
    return (
        f"no record has the field '{labels['field']}', and there is no --judge "
        f"(--strategy-field names another field{there})"
    )


def not_measured(result: dict[str, Any]) -> list[str]:
    """A line for each reason why figures are null, with their keys."""
    keys_of: dict[str, list[str]] = {}
    for _, key, value, _, note in rows_of(result):
        if value == "-":
            keys_of.setdefault(note, []).append(key)
    lines = []
    for why, keys in keys_of.items():
        names = ", ".join(keys)
        lines.append(f"Not measured, as {why}: {names}.")
    return lines


def render_table(result: dict[str, Any], everything: bool = False) -> Table:
    """The table that `twcli eval` prints; fits 80 columns.

    Args:
        everything: also the diagnostics.
    """
    records = f"{result['records']:,} records"
    prompts = f"{result['prompts']:,} prompts"
    title = f"{records}, {prompts}, {result['latents']} latents"
    caption = Text(mapping_line(result), style="table.caption")  # a name may look like markup
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    before = None
    shown = {*FIRST}
    if result["alignment"]["spare"]:
        shown |= {"generation_many_to_one", "posterior_many_to_one"}
    for section, key, value, interval, note in rows_of(result):
        if value == "-" or not (everything or key in shown or section == "retention"):
            continue
        if before not in (None, section):
            table.add_row()
        before = section
        table.add_row(NAMES.get(key, key), value, interval, note)
    return table


def mapping_line(result: dict[str, Any]) -> str:
    """Which strategy each latent produces, and the unmatched ones if their numbers differ; each
    line begins with a newline.
    """
    alignment = result["alignment"]
    unused = result["posterior"]["unused"]
    lines = []
    # at chance the mapping is one of many that fit as badly
    failed = (result.get("verdict") or {}).get("kind") == "failed"  # of an older run: not known
    if alignment["mapping"] is not None and not failed:
        spare = {k: f"{name} as well" for k, name in alignment["spare"].items()}
        meanings = {k: name or spare.get(k, "none") for k, name in alignment["mapping"].items()}
        lines.append(", ".join(f"z{k} = {meaning}" for k, meaning in meanings.items()))
        lines += [
            f"{name} has no latent of its own: z{k} takes most of it"
            for name, k in alignment["merged"].items()
        ]
    if unused:
        lines.append(f"unused: {', '.join(f'z{k}' for k in unused)}")
    return "".join("\n" + line for line in lines)


def verdict_lines(
    result: dict[str, Any], page: str, everything: bool = False
) -> tuple[list[str], list[str]]:
    """(the lines before the table, the lines after it).

    Args:
        page: path of the report.
        everything: also why each figure that is null could not be measured.
    """
    verdict = result["verdict"]
    after = []
    if result["alignment"]["mapping"] is None and verdict["kind"] != "failed":
        after += [latent_line(card) for card in result.get("latent_cards", ())]
    if everything:
        after += not_measured(result)
    elif result["alignment"]["nmi"] is None and result.get("judge") is None:
        after.append(f"What a latent means is not measured: {_no_labels(result)}.")
    return [verdict["sentence"], verdict["advice"]], [*after, f"Page: {page}"]


def render_inspection(found: dict[str, Any]) -> str:
    """What `twcli inspect` prints.

    Args:
        found: of `commands.inspection.inspect`.
    """
    if found["kind"] == "cache":
        lines = _cache_lines(found)
    elif found["kind"] == "runs":
        lines = _runs_lines(found)
    else:
        lines = _run_lines(found)
    if found["problems"] is not None:
        lines += found["problems"] or ["verified: every checksum matches"]
    return "\n".join(lines)


def _cache_lines(found: dict[str, Any]) -> list[str]:
    """What a cache holds, how b_t is spread, and what it was made from."""
    rows = f"{found['rows']:,} rows"
    lines = [f"cache: {rows}, {found['tokens']:,} tokens of y"]
    if found["profile"]:
        lines += _profile_lines(found["profile"])
    for text in found["texts"]:
        begin = f"line {text['line']}: {text['prompt']}"
        pieces = coloured(text["pieces"])
        lines.append(f"{begin} {pieces}")
    for key, value in found["fingerprint"].items():
        lines.append(f"made from {key}: {json.dumps(value)}")
    return lines


def _profile_lines(profile: dict[str, Any]) -> list[str]:
    """How b_t is spread over y, in nats."""
    known = {q: value for q, value in profile["quantiles"].items() if value is not None}
    quantiles = ", ".join(f"{q} {value:.3g}" for q, value in known.items())
    lines = [
        f"b_t: {profile['mean']:.4f} nats per token, {profile['example']:.3f} per example; "
        f"quantiles {quantiles}"
    ]
    for first, share in profile["opening"].items():
        if share is not None:
            tokens = "tokens" if int(first) > 1 else "token"
            lines.append(f"     {share:.0%} of all nats in the first {first} {tokens} of y")
    lines += _histogram_lines(profile["histogram"])
    if profile["informative"] is not None:
        lines.append(
            f"     effective t0 / T {profile['informative']:.3f}: weighting strengthens "
            f"the posterior's gradient about {1 / profile['informative']:.1f} times"
        )
    lines.append(
        f"     {profile['uniform_rows']:.1%} of the rows have no mass and use the uniform average"
    )
    lines.append(f"can weighting help? {profile['verdict']}")
    return lines


def _histogram_lines(bins: Sequence[dict[str, float]]) -> list[str]:
    """A bar for each bin of b_t."""
    lines = []
    for number, part in enumerate(bins):
        is_last = number + 1 == len(bins)
        if is_last:
            upper = "up"
        else:
            upper = f"to {bins[number + 1]['from']:g}"
        bar = "#" * round(BAR_COLUMNS * part["tokens"])
        lines.append(
            f"     {part['from']:>5g} {upper:<7} {bar:<{BAR_COLUMNS}} {part['tokens']:6.1%} of "
            f"tokens, {part['nats']:.0%} of nats"
        )
    return lines


def _verdict_of_run(found: dict[str, Any]) -> list[str]:
    """Whether a run works, as far as a command has said so, and what to do next."""
    if not found["done"]:
        return [
            "Not decided: the training is not finished; run its `twcli train` command again, "
            "which resumes it."
        ]
    verdict = found["verdict"]
    if verdict is None:
        return [
            f"Not decided: no figures are stored. {evaluation_of(found['path'])}",
        ]
    said = f"said by {verdict['command']} on {verdict['data']}, {verdict['date']}"
    return [verdict["sentence"], verdict["advice"], f"({said})"]


def _runs_lines(found: dict[str, Any]) -> list[str]:
    """Of each run whether it works."""
    lines = []
    for name, run in found["runs"].items():
        sentence, *_ = _verdict_of_run(run)
        lines.append(f"{name}: {sentence}")
    first = next(iter(found["runs"]))
    return [*lines, f"One of them in full: twcli inspect {found['path']}/{first}"]


def _run_lines(found: dict[str, Any]) -> list[str]:
    """Whether a run works, how far it is, what its last steps say, and its settings."""
    state = "finished" if found["done"] else "not finished"
    lines = [*_verdict_of_run(found), f"run: {state}, {found['steps']} steps"]
    last = found["last"]
    recent = found["recent"]
    if last:
        lines.append(
            f"last step: loss {last['loss']:.4f}; last {recent['steps']} steps: "
            f"I(z; y) {recent['mutual_information']:.3f} nats, "
            f"effective latents {recent['usage']:.2f}"
        )
        lines += _diagnostic_lines(last)
    lines += found["conditions"]
    lines.append("settings that are not at their defaults (all are in config.yaml):")
    lines += [f"     {key}: {value}" for key, value in found["changed"].items()]
    if found["page"]:
        lines.append(f"page: {found['page']}")
    return lines


def coloured(pieces: Sequence[tuple[str, float]]) -> str:
    """Text whose tokens are brighter the less likely the model found them; the strongest also show
    the number.
    """
    shown = []
    for text, nats in pieces:
        colour = next((colour for least, colour in SHADES if nats >= least), None)
        if colour is None:
            shown.append(text)
            continue
        number = f"[{nats:.1f}]"
        shown.append(click.style(text, fg=colour))
        shown.append(click.style(number, fg=colour, dim=True))
    return "".join(shown)


def _diagnostic_lines(last: dict[str, Any]) -> list[str]:
    """What a run's last step logged about b_t and z; empty for a run of an older version, which did
    not log it.
    """
    if last.get("z_sensitivity") is None:
        return []
    lines = [
        f"z-sensitivity: {last['z_sensitivity']:.4f} nats per token, "
        f"{last['z_sensitivity_sum']:.3f} per example"
        + _if_known(", {:.4f} per token under the weights", last["z_sensitivity_weighted"])
    ]
    if last["informative"] is not None:
        lines.append(
            f"b_t: effective t0 / T {last['informative']:.3f} ({last['informative_tokens']:.1f} "
            "tokens); q's gradient amplified "
            + _if_known("{:.1f} times, ", last.get("amplification"))
            + f"T / t0 {last['expected_amplification']:.1f}"
        )
    if last["uniform_rows"] is not None:
        lines.append(
            f"     {last['uniform_rows']:.1%} of the rows have no mass and use the uniform average"
        )
    lines.append(
        "gradient norms: "
        + _if_known("posterior {:.3g}, ", last["posterior_gradient_norm"])
        + f"latent embeddings {last['latent_gradient_norm']:.3g}, all {last['gradient_norm']:.3g}"
    )
    return lines


def _if_known(text: str, value: float | None) -> str:
    """The text with the value in it, empty where there is none."""
    if value is None:
        return ""
    return text.format(value)
