"""Countdown, depth first or breadth first: how many samples does a latent for each search save?

    python benchmarks/passk.py --out build/passk --table docs/pass-at-k.md [--seeds S ...]

For each seed: prompts with four completions each, nine of ten depth first; a model trained on them
(the frozen one); a run that finds its two latents by itself, and one that was given the searches'
names, an upper bound. Both are evaluated on prompts kept out of training, with 16 samples. What was
finished is kept: an interrupted call resumes. The figures of the tables are written beside the
page, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import pages
from examples.tasks.countdown import TASK
from twcli import __version__
from twcli.data.dataset import read_examples
from twcli.data.names import write_names
from twcli.models.inputs import open_inputs

ROOT = Path(__file__).resolve().parent.parent
PROMPTS, TESTED, COMPLETIONS = 1600, 200, 4
SAMPLES = 16
RUNS = ("found", "given")
PLACE = "tables"  # on the page; the rest is not written here
Results = dict[tuple[int, str], dict[str, Any]]  # of `twcli eval`, by seed and run
ARMS = {
    "frozen": "frozen model, best temperature",
    "even": "run, evenly",
    "proportional": "run, by router",
    "router": "run, router drawn",
}


def make_data(folder: Path, seed: int) -> None:
    """train.jsonl and test.jsonl of different prompts."""
    rng, xs = random.Random(seed), {}
    while len(xs) < PROMPTS + TESTED:
        x = TASK.sample_prompt(rng)
        if x not in xs and TASK.is_usable(x):
            xs[x] = None
    # The first ones are as the task draws them; later, prompts that can be solved become rare.
    for name, some in (("test", list(xs)[:TESTED]), ("train", list(xs)[TESTED:])):
        lines = []
        for x in some:
            traces = TASK.traces(x)
            for strategy in rng.choices(list(traces), weights=TASK.mixture(x), k=COMPLETIONS):
                lines.append({"x": x, "y": traces[strategy], "strategy": strategy})
        staged = folder / f".{name}.jsonl"
        staged.write_text("".join(json.dumps(line) + "\n" for line in lines))
        staged.replace(folder / f"{name}.jsonl")


def give_names(folder: Path) -> Path:
    """A names file that says what search each record is of."""
    data, out = str(folder / "train.jsonl"), folder / "given.names.jsonl"
    examples = read_examples(data, strategy_field="strategy")
    encoded = open_inputs(str(folder / "entangled"), data, examples=examples).encoded
    latents = np.array([list(TASK.strategies).index(str(e.strategy)) for e in examples])
    write_names(out, encoded.row_hash, latents, np.ones(len(latents)))
    return out


def run_seed(folder: Path, seed: int) -> None:
    """Makes what is missing.

    Raises:
        subprocess.CalledProcessError: a command failed; its output is in `log`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, train, test = folder / "entangled", folder / "train.jsonl", folder / "test.jsonl"
    if not test.exists():
        make_data(folder, seed)
    if not (model / "config.json").exists():
        made = ("--data", train, "--out", model, "--seed", seed)
        call(folder, "examples/entangle.py", *made)
    shared = ("--model", model, "--data", train)
    cache = folder / "train.bt.h5"
    if not cache.exists():
        call(folder, "-m", "twcli", "precompute", *shared, "--out", cache)
    for name in RUNS:
        result = folder / f"{name}.json"
        if result.exists():
            continue
        out = folder / name
        if name == "found":
            how: tuple[object, ...] = ("--latents", 2)
        else:
            how = ("--names", give_names(folder))
        how = (*how, "--seed", seed)
        call(folder, "-m", "twcli", "train", *shared, "--baseline", cache, "--out", out, *how)
        judged = ("--judge", "examples.tasks.countdown:judge", "--samples", SAMPLES, "--json")
        text = call(folder, "-m", "twcli", "eval", "--run", out, "--data", test, *judged)
        staged = folder / f".{name}.json"
        staged.write_text(text)
        staged.replace(result)


def call(folder: Path, *arguments: object) -> str:
    with (folder / "log").open("a") as log:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=log,
        ).stdout


def figures_of(out: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """What the tables are made of: of each finished run its seed, its name, when and by which
    version it was evaluated, and the part of the JSON of `twcli eval` that they show.
    """
    return [
        {
            "seed": seed,
            "run": name,
            "made": made(out / f"{seed}" / f"{name}.json"),
            **shown(json.loads((out / f"{seed}" / f"{name}.json").read_text())),
        }
        for name in RUNS
        for seed in seeds
    ]


def made(file: Path) -> str:
    """The date of a result and the version of twcli, as tables give them."""
    return f"{date.fromtimestamp(file.stat().st_mtime).isoformat()} of twcli {__version__}"


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """The part of the JSON of `twcli eval` that the tables show, in the same places."""
    sampling = result["sampling"]
    arms = {
        arm: {
            **picked(found, "temperature", "pass_at_k"),
            "diversity": picked(found["diversity"], "vendi", "self_bleu"),
        }
        for arm, found in sampling["arms"].items()
        if arm in ARMS
    }
    saved = {
        arm: picked(found, "ratio", "ratio_ci", "predicted")
        for arm, found in sampling["samples_saved"].items()
        if arm in ARMS
    }
    strategies = {
        search: picked(found, "frequency", "accuracy")
        for search, found in sampling["prediction"]["strategies"].items()
    }
    return {
        "alignment": picked(result["alignment"], "generation_one_to_one"),
        "sampling": {
            **picked(sampling, "k", "temperatures"),
            "arms": arms,
            "samples_saved": saved,
            "prediction": {"strategies": strategies},
            "transmission": picked(sampling["transmission"], "accuracy"),
        },
    }


def picked(found: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Those of the keys that are there."""
    return {key: found[key] for key in keys if key in found}


def tables(runs: list[dict[str, Any]]) -> str:
    """Markdown, from `figures_of`."""
    results = {(run["seed"], run["run"]): run for run in runs}
    found = {seed: r["sampling"] for (seed, run), r in results.items() if run == "found"}
    when = " and ".join(sorted({run["made"] for run in runs}))
    lines = [f"`make passk`, {when}.\n", *arms_tables(results)]
    lines += [*temperature_table(found), *searches_table(results)]
    return "\n".join(lines) + "\n"


def arms_tables(results: Results) -> list[str]:
    """pass@k of the arms and samples saved, of either kind of run."""
    lines = []
    for name, title in (
        ("found", "Latents found without labels"),
        ("given", "Latents given by the searches' names: the upper bound"),
    ):
        those = {seed: r["sampling"] for (seed, run), r in results.items() if run == name}
        if not those:
            continue
        ks = next(iter(those.values()))["k"]
        lines += [
            f"### {title}\n",
            f"| seed, arm | {' | '.join(f'pass@{k}' for k in ks)} | times fewer samples "
            "(95 % interval) | predicted |",
            f"| --- |{' ---: |' * (len(ks) + 2)}",
        ]
        for seed, found in those.items():
            for arm, label in ARMS.items():
                if arm == "frozen":
                    label += f" ({found['arms'][arm]['temperature']:g})"
                passed = " | ".join(f"{value:.3f}" for value in found["arms"][arm]["pass_at_k"])
                saved = found["samples_saved"].get(arm)
                ratio, predicted = "", ""
                if saved:
                    low, high = saved["ratio_ci"]
                    ratio = f"{saved['ratio']:.2f} ({low:.2f} to {high:.2f})"
                    if saved["predicted"] is not None:
                        predicted = f"{saved['predicted']:.2f}"
                lines.append(f"| {seed}, {label} | {passed} | {ratio} | {predicted} |")
        lines.append("")
    return lines


def temperature_table(found: dict[int, dict[str, Any]]) -> list[str]:
    """pass@k of the frozen model at each temperature, from `sampling` by seed."""
    lines = ["### Temperature alone: pass@k of the frozen model\n"]
    for seed, sampling in found.items():
        head = " | ".join(f"pass@{k}" for k in sampling["k"])
        if seed == min(found):
            lines += [f"| seed, temperature | {head} |", f"| --- |{' ---: |' * len(sampling['k'])}"]
        for temperature, values in sampling["temperatures"].items():
            passed = " | ".join(f"{value:.3f}" for value in values)
            lines.append(f"| {seed}, {temperature} | {passed} |")
    return [*lines, ""]


def searches_table(results: Results) -> list[str]:
    """How often each search is used and right, and how far the latents are kept apart."""
    lines = [
        "### What the searches are worth, and how far z is read back\n",
        "| seed, run | depth: frequency, accuracy | breadth: frequency, accuracy | alignment | z "
        "read back | vendi, frozen | vendi, run | self-BLEU, frozen | self-BLEU, run |",
        f"| --- |{' ---: |' * 8}",
    ]
    for (seed, name), result in results.items():
        sampling = result["sampling"]
        predicted = sampling["prediction"]["strategies"]
        cells = [
            f"{predicted[search]['frequency']:.2f}, {predicted[search]['accuracy']:.2f}"
            if search in predicted and predicted[search]["accuracy"] is not None
            else "-"
            for search in TASK.strategies
        ]
        aligned = result["alignment"]["generation_one_to_one"]
        cells += [f"{aligned:.3f}", f"{sampling['transmission']['accuracy']:.3f}"]
        for key, digits in (("vendi", 2), ("self_bleu", 1)):
            for arm in ("frozen", "even"):
                cells.append(f"{sampling['arms'][arm]['diversity'][key]:.{digits}f}")
        lines.append(f"| {seed}, {name} | {' | '.join(cells)} |")
    return lines


def over_seeds(
    name: str,
    description: str | None,
    run_seed: Callable[[Path, int], None],
    figures_of: Callable[[Path, list[int]], list[dict[str, Any]]],
    tables: Callable[[list[dict[str, Any]]], str],
    table: Path,
    argv: list[str] | None,
) -> None:
    """The command line of a benchmark of several seeds: runs each in a folder of its own, and
    writes the tables between the marks of its page and their figures beside it.

    Args:
        name: of the benchmark, and of the folder in build/ that holds its runs.
        run_seed: called with a folder and a seed; resumes what is there.
        figures_of: called with the folder of all runs and the seeds; gives JSON.
        tables: Markdown of those figures.
        table: the page.
    """
    parser = argparse.ArgumentParser(
        prog=f"{name}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build") / name)
    parser.add_argument("--table", type=Path, default=table)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args(argv)
    out = options.out.resolve()
    for seed in options.seeds:
        run_seed(out / f"{seed}", seed)
        print(f"seed {seed}: done", file=sys.stderr, flush=True)
    pages.write(options.table, PLACE, tables, figures_of(out, options.seeds))


def main(argv: list[str] | None = None) -> None:
    over_seeds("passk", __doc__, run_seed, figures_of, tables, Path("docs/pass-at-k.md"), argv)


if __name__ == "__main__":
    main()
