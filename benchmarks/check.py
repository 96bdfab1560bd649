"""Whether speed fell: ratios that take five minutes to measure, against those of this machine.

    python benchmarks/check.py             compare; exit code 1 where a ratio fell by more than 10 %
    python benchmarks/check.py --store     keep this machine's ratios in benchmarks/figures.json,
                                           and put all that are there into docs/benchmarks.md

Ratios of processor time are taken by turns in one process, so that other work on the machine
disturbs both sides alike. A ratio that seems to have fallen is measured once more, with twice the
turns, before it counts. Another machine's ratios say nothing about this one: exit code 2.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pages
from benchmarks.bench import rate
from benchmarks.workloads import (
    batch_of,
    default_recipe,
    gradient,
    latent_model,
    llama,
    prompts_of,
    rows_to_score,
    score,
    scoring_work,
    steps_of_a_shape,
    timed,
)
from twcli.models.runtime import quiet_transformers, tune_allocator, versions
from twcli.storage.durable import write_durably

FIGURES = Path(__file__).resolve().parent / "figures.json"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
TABLE = "ratios"  # its place on that page
COMMAND = "make bench-check"
FALL = 0.1  # of a ratio, that is taken for a fall
TURNS = 3
HIGHER, LOWER = "higher", "lower"  # which is better


@dataclass(frozen=True)
class Ratio:
    """One figure of a check, and which direction is better."""

    figure: float
    better: str = HIGHER


Ratios = dict[str, Ratio]


def step_ratios(P: int, K: int, S: int, turns: int) -> Ratios:
    """Of a training step on one shape, one thread."""
    model = latent_model(llama(), K)
    batch = batch_of(P, S, max(1, 128 // (P + S)), model.backbone.config.vocab_size)
    calls = steps_of_a_shape(model, batch)
    steps = {name: partial(gradient, model, call) for name, call in calls.items()}
    taken = timed(steps | {"default": partial(default_recipe, model, batch)}, turns)
    seconds = {name: each.processor for name, each in taken.items()}
    exact, plain = seconds["ours exact"], seconds["plain fine-tuning"]
    label = f"10 M Llama ({P}, {K}, {S})"
    return {
        f"{label}: times faster than K + 2 passes": Ratio(seconds["K + 2 passes"] / exact),
        f"{label}: times faster than cached K + 1": Ratio(seconds["cached K + 1"] / exact),
        f"{label}: exact step in plain fine-tuning steps": Ratio(exact / plain, LOWER),
        f"{label}: default step in plain fine-tuning steps": Ratio(
            seconds["default"] / 2 / plain, LOWER
        ),
    }


def precompute_ratios(turns: int) -> Ratios:
    """Of the pass for b_t, one thread."""
    model, encoded = llama(), rows_to_score(64, 2)
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    long = prompts_of(np.random.default_rng(1), np.full(16, 256), np.full(16, 64), 4)
    rates: list[float] = []
    taken = timed(
        {
            "ours": partial(score, model, encoded),
            "bound": lambda: rates.append(rate()),
            "padded": partial(score, model, encoded, varlen=False),
            "bf16": partial(score, rounded, encoded),
            "once": partial(score, model, long),
            "each": partial(score, model, long, varlen=False),
        },
        turns,
    )
    seconds = {name: each.processor for name, each in taken.items()}
    ours = seconds["ours"]
    bound = scoring_work(model, encoded) / float(np.median(rates))
    return {
        "precompute: share of the bound": Ratio(bound / ours),
        "precompute: without padding, times padded": Ratio(seconds["padded"] / ours),
        "precompute: bf16, times float32": Ratio(ours / seconds["bf16"]),
        "precompute: prompt of 256 read once for four completions, times each with its own": Ratio(
            seconds["each"] / seconds["once"]
        ),
    }


PARTS: dict[str, Callable[[int], Ratios]] = {
    "(64, 8, 64)": partial(step_ratios, 64, 8, 64),
    "(256, 8, 32)": partial(step_ratios, 256, 8, 32),
    "precompute": precompute_ratios,
}


def fallen(stored: Ratios, measured: Ratios, tolerance: float = FALL) -> dict[str, str]:
    """What became worse than `tolerance` allows, by name, in words; ratios that were not measured,
    or are no number, count as fallen.
    """
    found = {}
    for name, before in stored.items():
        now = measured.get(name)
        if now is None or not math.isfinite(now.figure) or now.figure <= 0:
            found[name] = f"was {before.figure:.3g}, is not measured"
            continue
        gain = now.figure / before.figure
        if before.better == LOWER:
            gain = 1 / gain
        if gain < 1 - tolerance:
            found[name] = f"was {before.figure:.3g}, is {now.figure:.3g}, {1 - gain:.0%} worse"
    return found


def check(
    stored: Ratios,
    parts: dict[str, Callable[[int], Ratios]],
    say: Callable[[str], None],
) -> dict[str, str]:
    """`fallen` of all parts; one in which a ratio fell is measured once more, and the better figure
    counts.
    """
    measured: Ratios = {}
    for name, part in parts.items():
        ratios = part(TURNS)
        own = {key: ratio for key, ratio in stored.items() if key in ratios}
        if fallen(own, ratios):
            say(f"{name}: seems slower, measured once more")
            again = part(2 * TURNS)
            ratios = {key: _better(ratios[key], again[key]) for key in ratios}
        measured |= ratios
        for key, ratio in ratios.items():
            say(f"{key}: {ratio.figure:.3g} (stored {_shown(stored.get(key))})")
    return fallen(stored, measured)


def _better(one: Ratio, other: Ratio) -> Ratio:
    choose = min if one.better == LOWER else max
    return choose(one, other, key=lambda ratio: ratio.figure)


def _shown(ratio: Ratio | None) -> str:
    return "nothing" if ratio is None else f"{ratio.figure:.3g}"


def machine() -> str:
    """What decides about ratios: processor and instruction set, and cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        fields = {key.strip(): value.strip() for key, _, value in lines}
        name = fields.get("model name", name)
        if "amx_bf16" in fields.get("flags", "").split():
            name += " with AMX"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {capability}, {os.cpu_count()} cores"


def read(path: Path, name: str) -> Ratios | None:
    """The ratios stored for a machine; None where there are none."""
    entries = json.loads(path.read_text()) if path.exists() else {}
    if name not in entries:
        return None
    return {key: Ratio(**values) for key, values in entries[name]["ratios"].items()}


def store(path: Path, name: str, ratios: Ratios) -> None:
    """Keeps a machine's ratios with versions, date and command, in place of earlier ones."""
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[name] = {
        "date": date.today().isoformat(),
        "command": f"{COMMAND} STORE=--store",
        "versions": versions() | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "ratios": {
            key: {"figure": float(f"{ratio.figure:.4g}"), "better": ratio.better}
            for key, ratio in ratios.items()
        },
    }
    write_durably(path, (json.dumps(entries, indent=1, sort_keys=True) + "\n").encode())


def table(entries: dict[str, Any]) -> str:
    """Markdown: a row for each ratio, a column for each machine, and when and with what it was
    measured.
    """
    columns = [f"{name} ({entry['date']})" for name, entry in entries.items()]
    names = sorted({key for entry in entries.values() for key in entry["ratios"]})
    lines = [f"| ratio | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for key in names:
        figures = []
        for entry in entries.values():
            ratio = entry["ratios"].get(key)
            figures.append("-" if ratio is None else f"{ratio['figure']:.3g}")
        lines.append(f"| {key} | {' | '.join(figures)} |")
    kept = [
        ", ".join(
            f"{package} {entry['versions'][package]}" for package in ("torch", "transformers")
        )
        for entry in entries.values()
    ]
    return "\n".join([*lines, f"| versions | {' | '.join(kept)} |"]) + "\n"


def main(argv: Iterable[str] | None = None) -> int:
    """0 where nothing fell, 1 where something did, 2 where nothing is known of this machine."""
    parser = argparse.ArgumentParser(
        prog="check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--table", type=Path, default=PAGE)
    options = parser.parse_args(None if argv is None else list(argv))
    quiet_transformers()
    tune_allocator(keep=True)
    say = partial(print, file=sys.stderr, flush=True)
    here = machine()
    if options.store:
        ratios: Ratios = {}
        for name, part in PARTS.items():
            say(name)
            ratios |= part(TURNS)
        store(options.figures, here, ratios)
        pages.put(options.table, TABLE, table(json.loads(options.figures.read_text())))
        say(f"{options.figures}: {len(ratios)} ratios of {here}")
        return 0
    stored = read(options.figures, here)
    if stored is None:
        say(f"{options.figures}: has no ratios of this machine ({here}); keep them with --store")
        return 2
    found = check(stored, PARTS, say)
    for name, how in found.items():
        say(f"fell: {name}: {how}")
    if not found:
        say(f"no ratio of {len(stored)} fell by more than {FALL:.0%}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
