"""Short trainings of every quality, and what a verdict reads of their evaluations.

    python benchmarks/verdicts.py --keep tests/evaluation/verdicts.json FOLDER=TASK ...

A folder is one that `make demo` or `make passk` left: `entangled`, `train.jsonl`, `test.jsonl`. Of
each the first records are named once; runs are stopped after a few steps, trained with names that
are partly wrong, or with the uniform loss, which collapses. The file keeps what is in it already.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from twcli import discover, evaluate, precompute, train

RECORDS, TESTED = 4000, 400
STEPS = (30, 100, 250, 500)
WRONG = {"a third of the names drawn": 1 / 3, "all names drawn": 1.0}
WRONG_STEPS, UNIFORM_STEPS = 150, 40
READ = {
    "alignment": (
        "generation_one_to_one",
        "generation_one_to_one_ci",
        "posterior_one_to_one",
        "posterior_one_to_one_ci",
        "majority",
        "merged",
    ),
    "likelihood": ("gain", "gain_ci"),
    "posterior": ("collapsed", "mutual_information", "mutual_information_ci", "unused"),
}
READ_OF_LATENT = ("latent", "below", "obeyed", "obeyed_ci")
DIGITS = 5


def results_of(folder: Path, task: str, work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was done, and what a verdict reads of the run, one after the other.

    Args:
        work: an empty folder for what is made.
    """
    strategies = len(import_module(f"examples.tasks.{task}").TASK.strategies)
    data = first_lines(folder / "train.jsonl", RECORDS, work / "train.jsonl")
    test = first_lines(folder / "test.jsonl", TESTED, work / "test.jsonl")
    shared: dict[str, Any] = {"model": str(folder / "entangled"), "data": data}
    shared["baseline"] = precompute(**shared, out=str(work / "train.bt.h5"))
    named = {"model": shared["model"], "data": data, "latents": strategies}
    names = discover(**named, out=str(work / "names.jsonl"))["names"]
    calls: dict[str, dict[str, Any]] = {}
    for steps in STEPS:
        calls[f"{steps} steps"] = {"steps": steps, "names": names}
    for said, wrong in WRONG.items():
        other = drawn_anew(Path(names), wrong, strategies)
        calls[f"{WRONG_STEPS} steps, {said}"] = {"steps": WRONG_STEPS, "names": other}
    calls[f"{UNIFORM_STEPS} steps, uniform loss"] = {
        "steps": UNIFORM_STEPS,
        "latents": strategies,
        "weighting": "uniform",
        "warm_start": "none",
    }
    for number, (said, call) in enumerate(calls.items()):
        started = time.monotonic()
        run = str(work / f"run-{number}")
        train(**shared, **call, out=run)
        result = evaluate(run=run, data=test, judge=f"examples.tasks.{task}:judge")
        seconds = time.monotonic() - started
        print(f"{said}: {result['verdict']['sentence']} {seconds:.0f} s", flush=True)
        yield said, read_by_verdict(result)


def first_lines(source: Path, count: int, out: Path) -> str:
    """The first records; whole prompts, as each has four completions."""
    with source.open(encoding="utf-8") as lines:
        out.write_text("".join(islice(lines, count)), encoding="utf-8")
    return str(out)


def drawn_anew(names: Path, share: float, latents: int) -> str:
    """The names with so large a share of them drawn at random."""
    rng = random.Random(0)
    lines = []
    for line in names.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if rng.random() < share:
            entry["latent"] = rng.randrange(latents)
        lines.append(json.dumps(entry))
    out = names.with_name(f"names-{share:.2f}.jsonl")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(out)


def read_by_verdict(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of `eval --json` that `verdict_of` reads."""
    kept: dict[str, Any] = {key: result[key] for key in ("latents", "score", "score_ci")}
    for section, keys in READ.items():
        kept[section] = {key: result[section][key] for key in keys}
    kept["retention"] = [
        {key: entry[key] for key in READ_OF_LATENT} for entry in result["retention"] or ()
    ]
    return rounded(kept)


def rounded(value: Any) -> Any:
    """With so few digits that the file stays small."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return round(value, DIGITS)
    return value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="verdicts.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER=TASK")
    parser.add_argument("--keep", type=Path, required=True)
    options = parser.parse_args(argv)
    kept = json.loads(options.keep.read_text()) if options.keep.exists() else {}
    for given in options.folders:
        place, _, task = given.rpartition("=")
        with tempfile.TemporaryDirectory() as work:
            for said, result in results_of(Path(place), task, Path(work)):
                kept[f"{task}, model of {Path(place).name}, {said}"] = result
                options.keep.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
