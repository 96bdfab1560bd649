"""Tasks x seeds x losses, from the data to the evaluation, and a table of what came out.

    python benchmarks/quality.py --out build/quality --table docs/results.md [--tasks T ...]
                                 [--seeds S ...] [--variants V ...] [--jobs J]

Everything that was finished is kept: an interrupted call resumes, and a call for more tasks, seeds
or variants adds to the tables; what is written around them stays. What they are made of is written
beside the page, as JSON. `ours` is `twcli train` with its
defaults, the same for every task; `uniform` and `token` are the published losses without a warm
start, on the same model, data, steps and optimiser. `exact` is ours with nothing left out of a
step; `twice`, `less` and `auto` have twice as many latents as strategies, one fewer, and as many as
they find; `pairs` has two completions a prompt, the others four. `steps60` to `steps600` are ours
stopped early on a part of the records, so that there are runs of every quality for the score to
rank.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scipy.stats import spearmanr

from benchmarks import pages
from examples.tasks import HELD_ASIDE, TASKS
from twcli import __version__

ROOT = Path(__file__).resolve().parent.parent
NO_WARM_START = ("--warm-start", "none")
RECORDS, FEWER = 40000, 6000
RANKED = 10  # runs at least, for a rank correlation
PLACE = "tables"  # on the page; the rest is not written here


@dataclass(frozen=True)
class Variant:
    """Flags of `train`, K of the number of strategies, and what it trains on: completions a prompt,
    and the first records of them.
    """

    flags: tuple[str, ...] = ()
    latents: Callable[[int], int | str] = lambda count: count
    completions: int = 4
    records: int = RECORDS


VARIANTS = {
    "ours": Variant(),
    "exact": Variant(("--prune", "0")),
    "uniform": Variant(("--weighting", "uniform", *NO_WARM_START)),
    "token": Variant(("--weighting", "token", *NO_WARM_START)),
    "twice": Variant(latents=lambda count: 2 * count),
    "less": Variant(latents=lambda count: count - 1),
    "auto": Variant(latents=lambda _count: "auto"),
    "pairs": Variant(completions=2),
    **{
        f"steps{steps}": Variant(("--steps", str(steps)), records=FEWER)
        for steps in (60, 150, 300, 600)
    },
}
DEFAULT_VARIANTS = ("ours", "uniform", "token")
FIGURES = {  # column -> where it is in the JSON of `twcli eval`
    "K": ("latents",),
    "generation 1:1": ("alignment", "generation_one_to_one"),
    "posterior 1:1": ("alignment", "posterior_one_to_one"),
    "generation n:1": ("alignment", "generation_many_to_one"),
    "coverage": ("alignment", "coverage_mean"),
    "answers": ("answer_accuracy",),
    "gain (nats)": ("likelihood", "gain"),
    "I(z; y) (nats)": ("posterior", "mutual_information"),
    "score": ("score",),
}


@dataclass(frozen=True)
class Case:
    """One task and seed; `folder` holds all that is made for it."""

    task: str
    seed: int
    folder: Path

    def run(self, variants: Sequence[str]) -> None:
        """Makes what is missing.

        Raises:
            subprocess.CalledProcessError: a command failed; its output is in `log`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        model, test = self.folder / "entangled", self._made("test", 1200, 4, 2 * self.seed + 1)
        if not (model / "config.json").exists():
            data = self._made("train", RECORDS, 4, 2 * self.seed)
            self._call("examples/entangle.py", "--data", data, "--out", model, "--seed", self.seed)
        for variant in variants:
            if (self.folder / f"{variant}.json").exists():
                continue
            out, how = self.folder / variant, VARIANTS[variant]
            name = "train" if how.completions == 4 else f"train-by-{how.completions}"
            data = self._first(
                self._made(name, RECORDS, how.completions, 2 * self.seed), how.records
            )
            cache = data.with_suffix(".bt.h5")
            if not cache.exists():  # it appears when it is complete
                self._call(
                    "-m", "twcli", "precompute", "--model", model, "--data", data, "--out", cache
                )
            self._call(
                "-m",
                "twcli",
                "train",
                "--model",
                model,
                "--data",
                data,
                "--baseline",
                cache,
                "--out",
                out,
                "--latents",
                how.latents(len(TASKS[self.task].strategies)),
                "--seed",
                self.seed,
                *how.flags,
            )
            result = self._call(
                "-m",
                "twcli",
                "eval",
                "--run",
                out,
                "--data",
                test,
                "--json",
                "--judge",
                f"examples.tasks.{self.task}:judge",
            )
            staged = self.folder / f".{variant}.json"
            staged.write_text(result)
            staged.replace(self.folder / f"{variant}.json")

    def _made(self, name: str, records: int, completions: int, seed: int) -> Path:
        """A file of the task's records."""
        file = self.folder / f"{name}.jsonl"
        if not file.exists():
            self._call(
                "examples/make_data.py",
                self.task,
                "--records",
                records,
                "--completions",
                completions,
                "--seed",
                seed,
                "--out",
                file,
            )
        return file

    def _first(self, train: Path, records: int) -> Path:
        """A file of the first records, all completions of their prompts among them."""
        if records == RECORDS:
            return train
        part = self.folder / f"train-{records}.jsonl"
        with train.open(encoding="utf-8") as lines:
            part.write_text("".join(islice(lines, records)), encoding="utf-8")
        return part

    def _call(self, *arguments: object) -> str:
        # cases run side by side; a small model gains little from more
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("a") as log:
            return subprocess.run(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                env=environment,
                check=True,
                text=True,
                stdout=subprocess.PIPE,
                stderr=log,
            ).stdout


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="quality.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    parser.add_argument("--table", type=Path, default=Path("docs/results.md"))
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(TASKS),
        default=[name for name in TASKS if name not in HELD_ASIDE],
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=DEFAULT_VARIANTS)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default 2)")
    options = parser.parse_args(argv)
    out = options.out.resolve()
    cases = [
        Case(task, seed, out / f"{task}-{seed}") for seed in options.seeds for task in options.tasks
    ]
    failed = []

    def run(case: Case) -> None:
        try:
            case.run(options.variants)
            print(f"{case.task}, seed {case.seed}: done", file=sys.stderr, flush=True)
        except (subprocess.CalledProcessError, OSError) as error:
            failed.append(case)
            print(
                f"{case.task}, seed {case.seed}: {error}; see {case.folder / 'log'}",
                file=sys.stderr,
                flush=True,
            )

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, cases))
    pages.write(options.table, PLACE, tables, figures_of(out))
    print(options.table.read_text())
    sys.exit(1 if failed else 0)


def figures_of(out: Path) -> list[dict]:
    """What tables are made of: the runs below `out`, each with its figures."""
    runs = []
    for file in sorted(out.glob("*/*.json")):
        if file.stem not in VARIANTS:
            continue
        task, _, seed = file.parent.name.rpartition("-")
        result = json.loads(file.read_text())
        runs.append(
            {
                "variant": file.stem,
                "task": task,
                "seed": int(seed),
                "date": date.fromtimestamp(file.stat().st_mtime).isoformat(),
                "twcli": __version__,
                **{column: figure(result, path) for column, path in FIGURES.items()},
            }
        )
    return runs


def tables(runs: list[dict]) -> str:
    """Markdown of all runs: mean over seeds, and the range where there are several."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for run in runs:
        rows.setdefault((run["variant"], run["task"]), []).append(run)
    dates = " to ".join(sorted({run["date"] for run in runs}))
    versions = ", ".join(sorted({run["twcli"] for run in runs}))
    lines = [
        f"\n{dates}, `make quality` of twcli {versions}: mean over seeds "
        "(lowest to highest); 300 held-out prompts a seed.",
        *ranking(rows),
    ]
    for aside, title in ((False, "Six tasks"), (True, "Held aside: nothing was tuned on these")):
        for variant in VARIANTS:
            chosen = {
                task: results
                for (name, task), results in rows.items()
                if name == variant and (task in HELD_ASIDE) == aside
            }
            if not chosen:
                continue
            lines += [
                f"\n### {title}, {variant}\n",
                f"| task ({dates}) | seeds | " + " | ".join(FIGURES) + " |",
                "| --- " * (2 + len(FIGURES)) + "|",
            ]
            for task, results in chosen.items():
                lines.append(
                    f"| {task} | {len(results)} | "
                    + " | ".join(cell(results, column) for column in FIGURES)
                    + " |"
                )
            if len(chosen) > 1:
                every = [result for results in chosen.values() for result in results]
                lines.append(
                    f"| all | {len(every)} | "
                    + " | ".join(cell(every, column) for column in FIGURES)
                    + " |"
                )
    return "\n".join(lines) + "\n"


def ranking(rows: dict[tuple[str, str], list[dict]]) -> list[str]:
    """Does the score rank runs as their alignment does? Of runs with as many latents as
    strategies, which alone can reach 1.
    """
    runs = [
        run
        for (variant, _), results in rows.items()
        if VARIANTS[variant].latents(4) == 4
        for run in results
        if run.get("score") is not None
    ]
    if len(runs) < RANKED:
        return []
    scores = [run["score"] for run in runs]
    figures = [
        f"{column} {spearmanr(scores, [run[column] for run in runs]).statistic:.2f}"
        for column in ("generation 1:1", "posterior 1:1")
    ]
    return [
        "",
        f"Rank correlation (Spearman) of the label-free score over the {len(runs)} runs with as "
        f"many latents as strategies: with {', with '.join(figures)}.",
    ]


def cell(runs: list[dict], column: str) -> str:
    values = [run[column] for run in runs if run[column] is not None]
    if not values:
        return "-"
    text = f"{mean(values):g}" if column == "K" else f"{mean(values):.3f}"
    return (
        text if min(values) == max(values) else f"{text} ({min(values):.3g} to {max(values):.3g})"
    )


def figure(result: dict, path: tuple[str, ...]) -> float | None:
    for key in path:
        result = result.get(key, {})
    return None if result == {} else result


if __name__ == "__main__":
    main()
