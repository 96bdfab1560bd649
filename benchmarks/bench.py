"""What a step, a precompute and a cache cost, beside what they are measured against.

    python benchmarks/bench.py --out build/bench.json --table docs/benchmarks.md
                               [--only SECTION ...] [--repeats R]

Everything compared is measured in this one process, by turns, and the median of `--repeats` rounds
is taken after one that is not counted. Time is processor time of this process, which other programs
on the machine disturb least, but for what two cores do at once. The file keeps the rows of the
sections that a call leaves out; with `--table` a copy of it is written beside the page. TRL is
optional: pip install 'twcli-cvae[bench]'.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench_gpu, pages
from benchmarks.workloads import (
    SHAPES,
    TEMPLATE,
    Row,
    Seconds,
    apart,
    batch_of,
    default_recipe,
    fine_tuning,
    gradient,
    latent_model,
    llama,
    prompts_of,
    rows_to_score,
    score,
    scoring_work,
    separate_passes,
    smollm2,
    speed_rows,
    steps_of_a_shape,
    through,
    timed,
    total,
    trl_pass,
)
from twcli.commands.precompute import precompute
from twcli.config.precompute import PrecomputeConfig
from twcli.config.train import TrainConfig
from twcli.data.batches import Batch, BatchSampler, collate
from twcli.kernels import packing
from twcli.kernels.linear import linear
from twcli.kernels.packing import AUTO
from twcli.models.runtime import quiet_transformers, tune_allocator
from twcli.storage.cache import Cache, CacheWriter
from twcli.storage.run_folder import RunFolder
from twcli.training import trainer
from twcli.training.schedule import batch_sampler_of
from twcli.training.setup import prepare
from twcli.training.stages import batches

ROOT = Path(__file__).resolve().parent.parent
PAIRS = 256, 2  # rows to score, and completions a prompt: as TRL wants them
CACHE_ROWS, CACHE_TOKENS = 10_000_000, 4
CORES = min(2, os.cpu_count() or 1)  # of the comparison with TRL: both may use them


# A training step on one shape


def shape_rows(
    name: str, make: Callable[[], LlamaForCausalLM], P: int, K: int, S: int, rows: int, repeats: int
) -> list[Row]:
    backbone = make()
    vocabulary = backbone.config.vocab_size
    model = latent_model(backbone, K)
    batch = batch_of(P, S, rows, vocabulary)
    calls = steps_of_a_shape(model, batch)
    loss, expected = gradient(model, partial(separate_passes, model, batch, False))
    separate = loss, [g.clone() for g in expected]
    found, gradients = gradient(model, calls["ours exact"])
    ours_once = found, [g.clone() for g in gradients]
    steps = {label: partial(gradient, model, call) for label, call in calls.items()}
    taken = timed(steps | {"ours default": partial(default_recipe, model, batch)}, repeats)
    seconds = {label: each.processor for label, each in taken.items()}
    seconds["ours default"] /= 2
    columns = ", ".join(f"{label} {value:.3f}" for label, value in seconds.items())
    label = f"{name} ({P}, {K}, {S})"
    exact = gradient(
        model.double(),
        partial(
            separate_passes, model, replace(batch, baseline_BS=batch.baseline_BS.double()), False
        ),
    )
    rounding = (
        f"both differ from K + 1 passes in float64: ours by {apart(ours_once, exact):.1e}, "
        f"they by {apart(separate, exact):.1e}"
    )
    return [
        Row(
            f"{label}: largest relative difference of loss and gradients",
            apart(ours_once, separate),
            1e-5,
            "<=",
            rounding,
        ),
        *speed_rows(label, P, K, S, seconds, f"{rows} records; seconds: {columns}"),
    ]


def mixed(repeats: int) -> Row:
    """A step on completions of very different lengths, four a prompt, with padding in the
    linear layers and without.
    """
    model, encoded = latent_model(llama(), 4), rows_to_score(1024, 4)
    model.execution = AUTO
    sampler = BatchSampler(encoded.lengths, encoded.prompt_index, batch_tokens=2048, seed=[0])
    batch = collate(sampler.epoch(0)[0], encoded, TEMPLATE, None)
    batch = replace(batch, baseline_BS=batch.active_BS.float())

    def step(dense: float) -> None:
        with patch.object(packing, "DENSE", dense):
            gradient(model, partial(through, model, batch, AUTO))

    seconds = timed({"padded": partial(step, 0.0), "real": partial(step, packing.DENSE)}, repeats)
    return Row(
        "10 M Llama, four completions a prompt of log-normal lengths, K = 4: "
        "a step without padding, times the same padded",
        seconds["padded"].processor / seconds["real"].processor,
        note=(
            f"{batch.active_BS.float().mean():.0%} of the places of y hold a token; "
            f"{len(batch.rows_B)} records"
        ),
    )


def decided(P: int, K: int, S: int, early: int, rows: int, repeats: int) -> Row:
    """A step of the learned posterior once it is all but sure, with b_t in the first few tokens."""
    model = latent_model(llama(), K)
    model.execution = AUTO
    with torch.no_grad():
        model.head.outer.bias[0] = 14.0
    batch = batch_of(P, S, rows, model.backbone.config.vocab_size)
    batch = replace(batch, baseline_BS=batch.baseline_BS * (torch.arange(S) < early))
    blind = replace(batch, baseline_BS=None)

    def step(read: Batch, prune: float) -> torch.Tensor:
        output = model(read, prune=prune)
        return total(output.nll_BCS, output.log_posterior_BK, output.log_router_BK, batch)

    calls = {
        "plain": partial(fine_tuning, model, batch),
        "ours": partial(step, batch, 1e-3),
        "whole": partial(step, blind, 1e-3),
        "exact": partial(step, batch, 0.0),
    }
    taken = timed({label: partial(gradient, model, call) for label, call in calls.items()}, repeats)
    whole, exact, ours = (
        taken[label].processor / taken["plain"].processor for label in ("whole", "exact", "ours")
    )
    return Row(
        f"10 M Llama ({P}, {K}, {S}), a learned posterior that has decided: "
        "step in plain fine-tuning steps",
        ours,
        note=(
            f"{whole:.2f} where latents without mass are read to the end, {exact:.2f} with all "
            f"gradients; {rows} records, b_t in the first {early} tokens"
        ),
    )


def shapes(repeats: int) -> Iterator[Row]:
    for P, K, S in SHAPES:
        yield from shape_rows("10 M Llama", llama, P, K, S, max(1, 256 // (P + S)), repeats)
    yield from shape_rows("SmolLM2-135M shape", smollm2, 64, 8, 64, 1, repeats)
    yield mixed(repeats)
    yield decided(16, 8, 48, 20, 16, repeats)


# The default recipe


@contextlib.contextmanager
def no_bar(_label: str, _total: int) -> Any:
    yield lambda _count: None


def silent(_text: str) -> None:
    pass


def sorting_task(folder: Path) -> tuple[Path, Path]:
    """The records of the sorting task, and a model that was trained on them to its end: b_t decides
    what `--prune` may leave out.
    """
    data, model = folder / "train.jsonl", folder / "entangled"
    made = "make_data.py sorting_algorithms --records 4000 --completions 4 --out"
    for script, *arguments in (
        [*made.split(), data],
        ["entangle.py", "--data", data, "--out", model],
    ):
        subprocess.run(
            [sys.executable, ROOT / "examples" / script, *map(str, arguments)],
            check=True,
            capture_output=True,
        )
    return data, model


def default(repeats: int) -> list[Row]:
    """Steps of a run with K = 8 on the sorting task that correct the naming, each beside a plain
    fine-tuning step on its records.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, model = sorting_task(folder)
        common = {"model": str(model), "data": str(data), "device": "cpu"}
        precompute(PrecomputeConfig(out=str(folder / "b.h5"), **common), silent, no_bar)
        config = TrainConfig(
            baseline=str(folder / "b.h5"),
            latents=8,
            out=str(folder / "run"),
            steps=20 + 8 * repeats,
            **common,
        )
        given = steps_beside_plain_ones(config)
        every = steps_beside_plain_ones(replace(config, out=str(folder / "every")), used=8)
    return [
        Row(
            "default recipe, sorting, K = 8, after the warm start: a step in plain fine-tuning "
            "steps",
            given.step,
            2.5,
            "<=",
            f"refine {given.refine:.2f}, settle {given.settle:.2f}; {given.used} of the latents "
            "are used; an entangled model as examples/entangle.py makes it, all of a step: "
            "collating, optimiser, metrics",
        ),
        Row(
            "default recipe, the same where all 8 latents are used",
            every.step,
            2.5,
            "<=",
            f"refine {every.refine:.2f}, settle {every.settle:.2f}",
        ),
        Row(
            "default recipe: reading b_t of a batch from the cache, share of a training step",
            given.reading,
            0.01,
            "<=",
        ),
    ]


@dataclass(frozen=True)
class Cost:
    """Medians: of the steps of a stage, in plain fine-tuning steps on the same records; of
    reading b_t, a share of a step.
    """

    refine: float
    settle: float
    reading: float
    used: int

    @property
    def step(self) -> float:
        return (self.refine + self.settle) / 2


def steps_beside_plain_ones(config: TrainConfig, used: int | None = None) -> Cost:
    """Runs `config`; `used` stands for the number of latents that the warm start found."""
    run = RunFolder(config.out)
    with run.writer():
        setup = prepare(config, run, silent, no_bar)
        setup.used = used or setup.used
        setup.course.opened = round(0.05 * config.steps)
        run.begin(setup.config)
        tuned = copy.deepcopy(setup.model.backbone)
        # as `trainer` has it
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-4, fused=True)
        rows = np.setdiff1d(np.arange(len(setup.encoded)), setup.held.rows_H)
        stream = batches(
            setup.course,
            0,
            partial(batch_sampler_of, setup.config, setup.encoded),
            rows[setup.latent_N[rows] >= 0],
            rows,
        )
        steps = trainer.fit(setup, silent)
        ours: dict[str, list[float]] = {"hold": [], "refine": [], "settle": []}
        reading = []
        for stage, (rows,) in stream:
            start = time.process_time()
            setup.cache.read(rows)
            read = time.process_time()
            next(steps)
            middle = time.process_time()
            reading.append((read - start) / (middle - read))
            batch = collate(rows, setup.encoded, setup.encoder, setup.cache)
            tuned(input_ids=batch.plain_BT, labels=batch.plain_BT, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ours[stage].append((middle - read) / (time.process_time() - middle))
    refine, settle = (median(ours[stage][2:]) for stage in ("refine", "settle"))
    return Cost(refine, settle, median(reading), setup.used)


# Memory


def peak(K: int) -> None:
    """Prints MiB that a step with `--latent-chunk 1` takes above the loaded model."""
    tune_allocator(keep=False)  # as `twcli train --latent-chunk` does
    model = latent_model(llama(), K)
    model.latent_chunk, model.execution = 1, AUTO
    batch = batch_of(64, 64, 16, 8192)
    before = high_water()
    gradient(model, partial(through, model, batch, AUTO))
    print(high_water() - before)


def high_water() -> float:
    """MiB of memory that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux starts a child's ru_maxrss at what its parent held
        return (
            next(
                int(line.split()[1])
                for line in status.read_text().splitlines()
                if line.startswith("VmHWM:")
            )
            / 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(_repeats: int) -> list[Row]:
    def measured(K: int) -> float:
        call = [sys.executable, __file__, "--peak", str(K)]
        return float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)

    small, large = measured(2), measured(16)
    return [
        Row(
            "--latent-chunk 1: memory of a step, K = 16 over K = 2",
            large / small,
            1.1,
            "<=",
            f"{small:.0f} and {large:.0f} MiB above the loaded model; 10 M Llama, 16 records, "
            "P = S = 64",
        )
    ]


# Precompute


def rate() -> float:
    """Multiply-adds a second of a large float32 matrix product, by torch's own or by oneDNN,
    whichever is faster.
    """
    a = torch.randn(1024, 1024)
    seconds = []
    for product in (F.linear, linear):
        start = time.process_time()
        with torch.no_grad():
            for _ in range(4):
                product(a, a)
        seconds.append(time.process_time() - start)
    return 4 * 1024**3 / min(seconds)


def precompute_rows(repeats: int) -> list[Row]:
    model, encoded = llama(), rows_to_score(*PAIRS)
    rows = len(encoded)
    rates: list[float] = []
    long = prompts_of(np.random.default_rng(1), np.full(64, 256), np.full(64, 64), 4)
    alone = {
        "ours": partial(score, model, encoded),
        "padded": partial(score, model, encoded, varlen=False),
        "bound": lambda: rates.append(rate()),
        "once": partial(score, model, long),
        "each": partial(score, model, long, varlen=False),
    }
    calls = {name: partial(on_cores, 1, call) for name, call in alone.items()}
    calls["ours, all cores"] = partial(on_cores, CORES, alone["ours"])
    with Process(["--serve-trl"], CORES) as theirs:
        if theirs:
            calls["TRL"] = theirs.seconds
        seconds = timed(calls, repeats)
    ours, every = seconds["ours"].processor, seconds["ours, all cores"]
    share = scoring_work(model, encoded) / median(rates) / ours
    times, note = None, f"{rows / every.wall:.0f} rows a second; TRL is not installed"
    if theirs:
        trl = seconds["TRL"]
        times = trl.wall / every.wall
        note = (
            f"{rows / every.wall:.0f} rows a second; TRL {rows / trl.wall:.1f}; "
            "in processor seconds, with what threads wait for each other, "
            f"{trl.processor / every.processor:.2f} times"
        )
    return [
        Row(
            f"precompute on {CORES} cores: rows a second, times TRL's precompute_ref_log_probs",
            times,
            7.0,
            note=note,
        ),
        Row(
            "precompute: share of the bound, multiply-adds of real tokens at the rate of a large "
            "matrix product",
            share,
            0.6,
            note="" if times is None else f"at 7 times TRL it would be {7 * share / times:.2f}",
        ),
        Row(
            "precompute: rows without padding and prompts once, times the same rows padded",
            seconds["padded"].processor / ours,
        ),
        Row(
            f"precompute: rows a second on {CORES} cores, times one",
            seconds["ours"].wall / every.wall,
        ),
        Row(
            "precompute: four completions of 64 tokens a prompt of 256, the prompt read once, "
            "times each with its own",
            seconds["each"].processor / seconds["once"].processor,
        ),
    ]


def on_cores(cores: int, call: Callable[[], Any]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    call()
    torch.set_num_threads(before)


@dataclass
class Process:
    """A pass that another process makes on request, so that nothing set in this one
    speeds it up or slows it down.
    """

    arguments: list[str]
    threads: int

    def __enter__(self) -> Process | None:
        call, environment = (
            [sys.executable, __file__, *self.arguments],
            os.environ | {"OMP_NUM_THREADS": str(self.threads)},
        )
        self._process = subprocess.Popen(
            call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self if self._process.stdout.readline() else None  # says so once it is ready

    def __exit__(self, *_raised: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def seconds(self) -> Seconds:
        """Of one more pass."""
        print(file=self._process.stdin, flush=True)
        return Seconds(*map(float, self._process.stdout.readline().split()))


def serve(call: Callable[[], Any]) -> None:
    """What `Process` talks to."""
    print("ready", flush=True)
    for _ in sys.stdin:
        start = Seconds.now()
        with contextlib.redirect_stdout(sys.stderr):
            call()
        taken = Seconds.now() - start
        print(taken.processor, taken.wall, flush=True)


def serve_trl(_asked: bool) -> None:
    if call := trl_pass(llama(), rows_to_score(*PAIRS)):
        serve(call)


# The cache at scale


def resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def cache(_repeats: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "large.h5"
        subprocess.run([sys.executable, __file__, "--make-cache", str(path)], check=True)
        result = subprocess.run(
            [sys.executable, __file__, "--read-cache", str(path)],
            check=True,
            capture_output=True,
            text=True,
        )
        figures = json.loads(result.stdout)
    label = f"cache of {CACHE_ROWS:,} rows"
    return [
        Row(f"{label}: seconds to open", figures["open"], 1.0, "<="),
        Row(f"{label}: random rows a second", figures["random"], 50_000, ">=", "in batches of 256"),
        Row(
            f"{label}: MiB above the imports while an epoch streams",
            figures["memory"],
            300,
            "<=",
            f"{figures['stream']:.0f} s for all rows, 256 at a time",
        ),
    ]


def make_cache(path: str) -> None:
    offsets = np.arange(CACHE_ROWS + 1, dtype=np.int64) * CACHE_TOKENS
    hashes = np.arange(2 * CACHE_ROWS, dtype=np.uint64).view(np.uint8).reshape(-1, 16)
    rng = np.random.default_rng(0)
    with CacheWriter(
        path,
        fingerprint={"made": "by bench.py"},
        offsets=offsets,
        row_hash=hashes,
        shard_rows=2**20,
    ) as writer:
        for rows in writer.missing:
            writer.write(rows, rng.exponential(size=len(rows) * CACHE_TOKENS).astype(np.float32))
        writer.publish()


def read_cache(path: str) -> None:
    before, start = resident(), time.perf_counter()
    stored = Cache(path)
    opened = time.perf_counter() - start
    rng = np.random.default_rng(0)
    picks = [rng.integers(0, CACHE_ROWS, 256) for _ in range(400)]
    for rows in picks[:100]:
        stored.read(rows)
    start = time.perf_counter()
    for rows in picks:
        stored.read(rows)
    random = 256 * len(picks) / (time.perf_counter() - start)
    start, most = time.perf_counter(), resident()
    for rows, _, _ in stored.stream(256):
        if rows.start % (256 * 1000) == 0:
            most = max(most, resident())
    print(
        json.dumps(
            {
                "open": opened,
                "random": random,
                "stream": time.perf_counter() - start,
                "memory": most - before,
            }
        )
    )


# Start-up


def start(repeats: int) -> list[Row]:
    seconds = []
    for _ in range(repeats + 1):
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "twcli", "--help"], check=True, capture_output=True, cwd=ROOT
        )
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
    return [Row("twcli --help: seconds", median(seconds[1:]), 0.3, "<=")]


SECTIONS = {
    "shapes": shapes,
    "default": default,
    "memory": memory,
    "precompute": precompute_rows,
    "cache": cache,
    "start": start,
    "gpu": bench_gpu.rows,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)  # this script's own processes
    parser.add_argument("--serve-trl", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make-cache", help=argparse.SUPPRESS)
    parser.add_argument("--read-cache", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    quiet_transformers()
    for call in (peak, serve_trl, make_cache, read_cache):
        if argument := getattr(options, call.__name__):
            call(argument)
            return
    tune_allocator(keep=True)  # as `twcli train` does; all columns have the good of it
    kept = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    for section in options.only:
        print(section, file=sys.stderr, flush=True)
        rows, others = [], [r for r in kept["rows"] if r["section"] != section]
        if section != "gpu" or "machine" not in kept:
            kept["machine"], kept["threads"] = (
                f"torch {torch.__version__} on a CPU, float32",
                torch.get_num_threads(),
            )
        for row in SECTIONS[section](options.repeats):  # what is measured is kept, whatever comes
            print(f"  {row.name}: {row.figure}", file=sys.stderr, flush=True)
            today = date.today().isoformat()
            rows.append({"section": section, "date": today, **asdict(row), "met": row.met})
            kept["rows"] = sorted(others + rows, key=lambda r: list(SECTIONS).index(r["section"]))
            kept["all_bars_met"] = all(r["met"] is not False for r in kept["rows"])
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(kept, indent=1) + "\n")
    for name, text in tables(kept).items():
        if options.table:
            pages.put(options.table, name, text)
        print(text)
    if options.table:  # what the tables are made of
        options.table.with_suffix(".json").write_text(options.out.read_text())


COLUMNS = """| what | figure | bar | met |
| --- | ---: | ---: | --- |
"""


def tables(kept: dict[str, Any]) -> dict[str, str]:
    """Markdown by the name of its place on the page: `bench` and, where a GPU was measured, `gpu`;
    with when and on what.
    """
    on_gpu = [row for row in kept["rows"] if row["section"] == "gpu"]
    others = [row for row in kept["rows"] if row["section"] != "gpu"]
    with_what = f"`make bench`, threads: {kept['threads']}; {kept['machine']}."
    found = {"bench": f"{dates(others)}, {with_what}\n\n{COLUMNS}{lines(others)}"}
    if on_gpu:
        found["gpu"] = f"{dates(on_gpu)}, `make bench`.\n\n{COLUMNS}{lines(on_gpu)}"
    return found


def dates(rows: list[dict[str, Any]]) -> str:
    """The days on which rows were measured; files of before 2026-12-01 do not say it."""
    return ", ".join(sorted({row.get("date", "date not kept") for row in rows}))


def lines(rows: list[dict[str, Any]]) -> str:
    text = ""
    for row in rows:
        figure = (
            "not measured"
            if row["figure"] is None
            else f"{row['figure']:.3g}"
            if row["figure"] < 1e4
            else f"{row['figure']:,.0f}"
        )
        bar = (
            ""
            if row["bar"] is None
            else f"{'at least' if row['sign'] == '>=' else 'at most'} {row['bar']:g}"
        )
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        text += (
            f"| {row['name']}{'. ' + row['note'] if row['note'] else ''} | {figure} | {bar} | "
            f"{met} |\n"
        )
    return text


if __name__ == "__main__":
    main()
