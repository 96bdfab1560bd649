"""What many records take: time and memory of everything that grows with their number.

    python benchmarks/scale.py --rows 10000000 --out build/scale.json

Each stage is a process of its own, whose largest resident memory is read at its end. The frozen
model's passes are left out: `make bench` has their rate, and they need no more memory for more
records. Those of `plan`, `assign` and `epoch` are made in memory; those of a command lie on disk.

    encode   `--data` is read and tokenised: JSONL with short rows
    plan     `precompute` finds the distinct records and the shards, and b_t of every row is written
    assign   `discover` names every record: a few are clustered, the others assigned as they stream
    epoch    `train` plans an epoch, reads b_t and builds each of its batches

With `--table` the figures are written beside the page as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pages

COMPLETIONS = 4  # a prompt, one of each strategy
X, Y = 8, 16  # tokens
WORDS = 1000
WIDTH = 16  # features of each kind
SHARD_ROWS = 2**16
BATCH_TOKENS = 2048
PLACE = "scale"  # on the page


def synthetic(rows: int) -> Any:
    """An `Encoded` of random ids, prompt by prompt; a prompt's completions are all different."""
    from twcli.data.encoded import Encoded

    rng = np.random.default_rng(0)
    width = X + Y + 5
    return Encoded(
        ids=rng.integers(16, WORDS, rows * width, np.int32),
        offsets=np.arange(rows + 1, dtype=np.int64) * width,
        prompt_lengths=np.full(rows, X + 2),
        target_lengths=np.full(rows, Y + 1),
        x_starts=np.full(rows, 2),
        x_lengths=np.full(rows, X),
        # a quarter of the prompts repeat a completion, as a strategy that writes one string does
        row_hash=_hashes(rows),
        prompt_index=np.arange(rows) // COMPLETIONS,
        unknown_rows=0,
    )


def _hashes(rows: int) -> np.ndarray:
    number = np.arange(rows, dtype=np.uint64)
    repeated = number % (4 * COMPLETIONS) == 1
    number[repeated] -= np.uint64(1)
    return np.stack([number, number], axis=1).view(np.uint8).reshape(rows, 16)


def encode(rows: int, folder: Path) -> None:
    """Writes the records, which is not measured, and reads them as every command does."""
    from examples.small_llama import make_tokenizer
    from twcli.data.dataset import stream_examples
    from twcli.data.encoder import ExampleEncoder
    from twcli.data.example import Example

    words = [f"w{number}" for number in range(WORDS)]
    path, rng = folder / "rows.jsonl", np.random.default_rng(0)
    with path.open("w") as file:
        for start in range(0, rows, 2**14):
            count = min(2**14, rows - start)
            xs, ys = rng.integers(0, WORDS, (count, X)), rng.integers(0, WORDS, (count, Y))
            for x, y in zip(xs[np.arange(count) // COMPLETIONS].tolist(), ys.tolist(), strict=True):
                record = {"x": " ".join(words[i] for i in x), "y": " ".join(words[i] for i in y)}
                file.write(json.dumps(record) + "\n")
    encoder = ExampleEncoder(make_tokenizer([Example(x=" ".join(words), y="w0")]), str(path))
    with measured(rows):
        encoded = encoder.encode(stream_examples(str(path)), max_length=512, source=str(path))
    assert len(encoded) == rows


def plan(rows: int, folder: Path) -> None:
    """Distinct rows and shards, then b_t of all rows, written and published."""
    from twcli.discovery.stored import distinct_rows
    from twcli.storage.cache import CacheWriter

    encoded, rng = synthetic(rows), np.random.default_rng(0)
    drawn = rng.exponential(size=SHARD_ROWS * (Y + 1)).astype(np.float32)
    with measured(rows):
        assert len(distinct_rows(encoded)) < rows
        writer = CacheWriter(
            str(folder / "bt.h5"),
            fingerprint={"made": "by scale.py"},
            offsets=encoded.target_offsets,
            row_hash=encoded.row_hash,
            shard_rows=SHARD_ROWS,
        )
        with writer:
            for part in writer.missing:
                writer.write(part, drawn[: len(part) * (Y + 1)])
            writer.publish()


def assign(rows: int, _folder: Path) -> None:
    """Names from features that show four strategies, made when they are asked for."""
    from twcli.discovery.features import Features
    from twcli.discovery.naming import name_rows

    encoded = synthetic(rows)
    centres = np.random.default_rng(1).normal(size=(COMPLETIONS, WIDTH)).astype(np.float32)

    def source(those: np.ndarray, advance: Callable[[int], None] | None) -> Features:
        rng = np.random.default_rng(int(those[0]))
        kinds = tuple(
            centres[those % COMPLETIONS] + rng.normal(size=(len(those), WIDTH)).astype(np.float32)
            for _ in range(4)
        )
        prompts = rng.normal(size=(len(those), WIDTH)).astype(np.float32)
        if advance:
            advance(len(those))
        return Features(kinds, prompts, np.full(len(those), Y + 1.0))

    with measured(rows):
        naming = name_rows(source, encoded, COMPLETIONS, seed=0)
    assert naming is not None and (naming.latent_N >= 0).all()
    own = naming.latent_N[:COMPLETIONS]
    right = (naming.latent_N.reshape(-1, COMPLETIONS) == own).mean()
    assert right > 0.8, f"{right:.2f} of the records have their latent"


def epoch(rows: int, folder: Path) -> None:
    """One epoch of batches with b_t from the cache that `plan` has left."""
    from types import SimpleNamespace

    from twcli.data.batches import BatchSampler, collate
    from twcli.storage.cache import Cache

    encoded, cache = synthetic(rows), Cache(str(folder / "bt.h5"))
    encoder: Any = SimpleNamespace(
        pad=0, z_open=8, z_close=9, latent_tokens=1, latent_section=3, section_shift=0
    )
    seen = 0
    with measured(rows):
        sampler = BatchSampler(
            encoded.lengths, encoded.prompt_index, batch_tokens=BATCH_TOKENS, seed=[0]
        )
        for batch in sampler.epoch(0):
            seen += len(collate(batch, encoded, encoder, cache).rows_B)
    assert seen == rows


class measured:
    """Prints the seconds on the clock and of the processor of what is done within it, and this
    process's largest resident memory, as one line of JSON.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __enter__(self) -> None:
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        wall, processor = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = {"wall": wall, "processor": processor}
        print(json.dumps({**found, "mib": most / 2**10, "mib_before": self.before / 2**10}))


STAGES: dict[str, Callable[[int, Path], None]] = {
    "encode": encode,
    "plan": plan,
    "assign": assign,
    "epoch": epoch,
}
NAMES = {
    "encode": "records read and tokenised",
    "plan": "`precompute`: distinct records, shards, b_t written",
    "assign": "`discover`: every record assigned",
    "epoch": "`train`: batches of an epoch, with b_t",
}


def run(rows: int, stages: list[str]) -> dict[str, dict[str, float]]:
    """Every stage in a process of its own, in one folder."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            command = [sys.executable, __file__, "--stage", stage, "--folder", folder]
            done = subprocess.run(
                [*command, "--rows", str(rows)], check=True, stdout=subprocess.PIPE, text=True
            )
            found[stage] = json.loads(done.stdout.splitlines()[-1])
            print(f"{rows:,} rows: {stage} {found[stage]}", file=sys.stderr, flush=True)
    return found


def table(figures: list[dict[str, Any]]) -> str:
    """Markdown: rates, and at each size the memory above that of the imports and the records.

    Args:
        figures: number of rows, stage, and what the stage's process printed.
    """
    lines = [
        "| what | records | records a second of one core | MiB above the start |",
        "| --- | ---: | ---: | ---: |",
    ]
    for stage, name in NAMES.items():
        of_stage = [one for one in figures if one["stage"] == stage]
        for one in sorted(of_stage, key=itemgetter("rows")):
            rate = one["rows"] / one["processor"]
            more = one["mib"] - one["mib_before"]
            lines.append(f"| {name} | {one['rows']:,} | {rate:,.0f} | {more:,.0f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="scale.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", type=Path, default=Path("build/scale.json"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.stage:
        STAGES[options.stage](options.rows[0], options.folder)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    today = date.today().isoformat()
    figures = [
        {"rows": rows, "stage": stage, "date": today, **found}
        for rows in options.rows
        for stage, found in run(rows, options.only).items()
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    if options.table:
        pages.write(options.table, PLACE, table, figures)


if __name__ == "__main__":
    main()
