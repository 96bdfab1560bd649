"""Tasks x seeds x losses, from the data to the evaluation, and a table of what came out.

    python examples/quality.py --out build/quality --table docs/quality.md [--tasks T ...] [--seeds S ...] [--jobs J]

Everything that was finished is kept: an interrupted call goes on, and a call for more tasks or seeds adds to the table.
`ours` is `twcli train` with its defaults, the same for every task; `uniform` and `token` are the published losses
without a warm start, on the same model, data, steps and optimiser.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
LOSSES = {"ours": [], "uniform": ["--weighting", "uniform", "--warm-start", "none"],
          "token": ["--weighting", "token", "--warm-start", "none"]}
FIGURES = {  # column -> where it stands in the JSON of `twcli eval`
    "generation 1:1": ("alignment", "generation_one_to_one"), "posterior 1:1": ("alignment", "posterior_one_to_one"),
    "coverage": ("alignment", "coverage_mean"), "answers": ("answer_accuracy",), "gain (nats)": ("likelihood", "gain"),
    "z carries (nats)": ("posterior", "mutual_information"),
}


@dataclass(frozen=True)
class Case:
    """One task and seed; `folder` holds all that is made for it."""

    task: str
    seed: int
    folder: Path

    def run(self, losses: Sequence[str]) -> None:
        """Makes what is missing.

        Raises:
            subprocess.CalledProcessError: a command failed; its output is in `log`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        train, test, model, cache = (self.folder / name for name in ("train.jsonl", "test.jsonl", "entangled", "train.bt.h5"))
        for file, records, seed in ((train, 40000, 2 * self.seed), (test, 1200, 2 * self.seed + 1)):
            if not file.exists():
                self._call("examples/make_data.py", self.task, "--records", records, "--completions", 4, "--seed", seed, "--out", file)
        if not (model / "config.json").exists():
            self._call("examples/entangle.py", "--data", train, "--out", model, "--seed", self.seed)
        self._call("-m", "twcli", "precompute", "--model", model, "--data", train, "--out", cache)
        for loss in losses:
            if (self.folder / f"{loss}.json").exists():
                continue
            out = self.folder / loss
            self._call("-m", "twcli", "train", "--model", model, "--data", train, "--baseline", cache, "--out", out,
                       "--latents", len(TASKS[self.task].strategies), "--seed", self.seed, *LOSSES[loss])
            result = self._call("-m", "twcli", "eval", "--run", out, "--data", test, "--json",
                                "--judge", f"examples.tasks.{self.task}:judge")
            staged = self.folder / f".{loss}.json"
            staged.write_text(result)
            staged.replace(self.folder / f"{loss}.json")

    def _call(self, *arguments: object) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # cases run side by side; a small model gains little from more
        with (self.folder / "log").open("a") as log:
            return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, check=True, text=True,
                                  stdout=subprocess.PIPE, stderr=log).stdout


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="quality.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    parser.add_argument("--table", type=Path, default=Path("docs/quality.md"))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default 2)")
    options = parser.parse_args(argv)
    out = options.out.resolve()
    cases = [Case(task, seed, out / f"{task}-{seed}") for seed in options.seeds for task in options.tasks]
    failed = []

    def run(case: Case) -> None:
        try:
            case.run(options.losses)
            print(f"{case.task}, seed {case.seed}: done", file=sys.stderr, flush=True)
        except (subprocess.CalledProcessError, OSError) as error:
            failed.append(case)
            print(f"{case.task}, seed {case.seed}: {error}; see {case.folder / 'log'}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, cases))
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(table(out))
    print(options.table.read_text())
    sys.exit(1 if failed else 0)


def table(out: Path) -> str:
    """Markdown of all results below `out`: mean over seeds, and the range where there are several."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for file in sorted(out.glob("*/*.json")):
        if file.stem in LOSSES:
            rows.setdefault((file.parent.name.rpartition("-")[0], file.stem), []).append(json.loads(file.read_text()))
    lines = [f"# Quality\n\n{date.today()}, `make quality`: mean over seeds (lowest to highest); 300 held-out prompts a seed.\n",
             "| task | loss | seeds | " + " | ".join(FIGURES) + " |", "| --- " * (3 + len(FIGURES)) + "|"]
    for (task, loss), results in sorted(rows.items(), key=lambda item: (item[0][1] != "ours", item[0][1], item[0][0])):
        lines.append(f"| {task} | {loss} | {len(results)} | " + " | ".join(cell(results, path) for path in FIGURES.values()) + " |")
    return "\n".join(lines) + "\n"


def cell(results: list[dict], path: tuple[str, ...]) -> str:
    values = []
    for result in results:
        for key in path:
            result = result[key]
        values.append(result)
    text = f"{mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
