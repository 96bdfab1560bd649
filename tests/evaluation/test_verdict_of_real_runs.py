"""No run that was trained gets the opposite verdict: neither one whose latents are obeyed "failed",
nor one at chance "works".

verdicts.json has what `eval --json` said of runs, as far as a verdict reads it: SmolLM2 on natural
language, the demo, a puzzle and an arithmetic toy, stopped early or not; and sorting and the puzzle
after a few steps, with names that are partly or all drawn, and under the uniform loss, made by
`make verdicts`. The tables of docs/results-history.md have one row for each of many runs more, of
which only the score is judged.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from twcli.evaluation.verdict import verdict_of, verdict_of_score, verdict_of_training

RUNS = json.loads((Path(__file__).parent / "verdicts.json").read_text(encoding="utf-8"))
PAGE = (Path(__file__).parents[2] / "docs" / "results-history.md").read_text(encoding="utf-8")
# arms whose every row is one run, with a latent for each strategy at most
ARMS = ("less", "pairs", "steps60", "steps150", "steps600")
STRATEGIES = {"base_conversion": 3, "graph_search": 5}  # of the other tasks 4
GOOD = 0.9  # share of what is asked for that is obeyed


def at_chance(share, latents):
    """Whether it is hardly more than a generator without z gets."""
    return share <= 1 / latents + 0.1 * (1 - 1 / latents)


def opposite(kind, share, latents):
    """Whether a verdict says the opposite of the share that is obeyed."""
    if at_chance(share, latents):
        return kind == "works"
    return share >= GOOD and kind == "failed"


def without(result, *keys):
    """The figures of a run that was evaluated with less: no judge, no labels, too few records."""
    alignment = dict(result["alignment"])
    found = {**result, "alignment": alignment}
    for key in keys:
        part = found if key == "score" else alignment
        part[key] = part[f"{key}_ci"] = None
    return found


@pytest.mark.parametrize("name", RUNS)
def test_of_evaluated_runs(name):
    run = RUNS[name]
    share, latents = run["alignment"]["generation_one_to_one"], run["latents"]
    if share is None:  # no judge: labels alone
        share = run["alignment"]["posterior_one_to_one"]
    judge, labels = "generation_one_to_one", "posterior_one_to_one"
    read = [
        run,
        without(run, judge),
        without(run, judge, labels),
        without(run, judge, labels, "score"),
    ]
    for result in read:
        kind = verdict_of(result).kind
        assert not opposite(kind, share, latents), (kind, share)
    ended = verdict_of_training(run["posterior"]["mutual_information"], latents)
    assert not opposite(ended.kind, share, latents)
    if run["score"] is not None:
        lost = [entry["latent"] for entry in run["retention"] if entry["below"]]
        assert not opposite(verdict_of_score(run["score"], latents, lost).kind, share, latents)


def test_those_runs_are_of_every_kind():
    kinds = Counter(verdict_of(run).kind for run in RUNS.values())
    assert len(RUNS) >= 30 and min(kinds[kind] for kind in ("works", "partly", "failed")) >= 7
    shares = [run["alignment"]["generation_one_to_one"] or 0.0 for run in RUNS.values()]
    good = sum(share >= GOOD for share in shares)
    chance = sum(
        at_chance(share, run["latents"]) for share, run in zip(shares, RUNS.values(), strict=True)
    )
    assert min(good, chance, len(RUNS) - good - chance) >= 8


def rows(heading):
    """Dicts of the rows of the table below a heading, without the last, which is of all."""
    table = PAGE.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = [dict(zip(head, row, strict=True)) for row in body]
    return [row for row in found if row[head[0]] != "all"]


def tabled():
    """Name, latents, share obeyed and score of each run that has a row."""
    for row in rows("## The defaults of 2026-11-27"):
        name = next(iter(row.values()))
        latents = STRATEGIES.get(name.split(",")[0], 4)
        yield f"defaults {name}", latents, float(row["generation 1:1"]), float(row["score"])
    headings = [f"### Six tasks: {arm}" for arm in ARMS]
    headings += re.findall(r"^### Held aside: .*$", PAGE, re.MULTILINE)
    for heading in headings:
        for row in rows(heading):
            if row["seeds"] != "1":
                continue
            name = f"{heading} {next(iter(row.values()))}"
            yield name, int(row["K"]), float(row["generation 1:1"]), float(row["score"])


def test_of_the_runs_that_have_a_row_in_the_results():
    runs = list(tabled())
    assert len(runs) >= 40
    shares = [share for _, _, share, _ in runs]
    assert min(shares) < 0.05 and max(shares) == 1.0  # runs that were stopped early, too
    wrong = [
        (name, share, score)
        for name, latents, share, score in runs
        if opposite(verdict_of_score(score, latents, ()).kind, share, latents)
    ]
    assert not wrong


def test_the_uniform_losss_runs_fail():
    """18 runs that collapsed: what is worst of each task, by score and by I(z; y)."""
    for row in rows("### Six tasks: uniform"):
        latents = int(row["K"])
        score = float(re.findall(r"[\d.]+", row["score"])[-1])
        information = float(re.findall(r"[\d.e-]+", row["I(z; y) (nats)"])[-1])
        assert verdict_of_score(score, latents, ()).kind == "failed"
        assert information < 0.1 * math.log(latents)
        assert verdict_of_training(information, latents).kind == "failed"
