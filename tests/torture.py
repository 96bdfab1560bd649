"""`make torture`: kills, failing disks, flipped bits, stale and hostile inputs, rival writers; a
table of what went wrong.

    OMP_NUM_THREADS=1 python -m tests.torture [--only kills faults ...] [--short] [--seed S]
                                              [--out build/torture.json]

Every victim is the real command, forked from this process, which has imported torch and
started no thread. Whatever is done to it, the same command run again must end with the
bits of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import torch
from safetensors.torch import load_file

import twcli.commands.precompute
import twcli.commands.sample
import twcli.evaluation.evaluate
from tests.conftest import LAUNCH, make_model, make_records, make_tokenizer, write_jsonl
from twcli.cli import main as cli
from twcli.config.options import read_yaml
from twcli.config.train import TrainConfig
from twcli.data.dataset import read_examples
from twcli.data.encoder import ExampleEncoder
from twcli.errors import UserError
from twcli.models import runtime
from twcli.storage import cache_format, checkpoints, run_folder, shards
from twcli.storage.beside import FEATURES_SUFFIX
from twcli.storage.cache import Cache, CacheWriter
from twcli.storage.feature_store import FeatureStore
from twcli.training import finishing, trainer

ROOT = Path(__file__).parent.parent
GIB = 2**30
FULL = {
    "precompute_kills": 300,
    "train_kills": 100,
    "sample_kills": 100,
    "flips": 1000,
    "part_flips": 60,
    "cut": 4096,
    "changes": 20,
    "long_line": GIB,
    "fuzz_seconds": 600,
    "rounds": 100,
    "fault_share": 1.0,
    "disk_steps": 64,
    "launches": True,
}
SHORT = {
    "precompute_kills": 4,
    "train_kills": 3,
    "sample_kills": 3,
    "flips": 50,
    "part_flips": 1,
    "cut": 2**16,
    "changes": 1,
    "long_line": 2**26,
    "fuzz_seconds": 1,
    "rounds": 3,
    "fault_share": 0.02,
    "disk_steps": 5,
    "launches": False,
}


@dataclass
class Ended:
    """How a victim ended: exit code, or minus the signal; what it printed; the
    most memory it had, in bytes.
    """

    code: int
    text: str
    memory: int
    events: list[str]

    @property
    def clean(self) -> bool:
        return not any(word in self.text for word in ("Traceback", "Error", "Exception"))

    @property
    def one_line(self) -> bool:
        return self.clean and len(self.text.strip().splitlines()) == 1


class Victim:
    """A command in a forked process that tells through a pipe what it has made durable."""

    def __init__(self, arguments: list[Any], before: Callable[[], None] | None = None) -> None:
        self.log = tempfile.TemporaryFile()
        reading, writing = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run([str(a) for a in arguments], writing, before)
        os.close(writing)
        self.pipe, self.events, self._open, self._rest = reading, [], True, b""

    def _run(self, arguments: list[str], writing: int, before: Callable[[], None] | None) -> None:
        code = 99
        try:
            os.dup2(self.log.fileno(), 1)
            os.dup2(self.log.fileno(), 2)
            tell_of_progress(lambda event: os.write(writing, event.encode() + b"\n"))
            if before:
                before()
            twcli.commands.sample.BLOCK = 12
            cli.main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def listen(self, seconds: float, until: str | None = None) -> bool:
        """Waits so long or until the event; whether it came. False at once
        where the victim has ended.
        """
        deadline = time.monotonic() + seconds
        while self._open and (left := deadline - time.monotonic()) > 0:
            if not select.select([self.pipe], [], [], left)[0]:
                return False
            data = os.read(self.pipe, 65536)
            self._open = bool(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.events += [line.decode() for line in lines]
            if until and any(line.decode().startswith(until) for line in lines):
                return True
        return False

    def wait(self) -> Ended:
        self.listen(300)
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.pipe)
        self.log.seek(0)
        text = self.log.read().decode(errors="replace")
        self.log.close()
        return Ended(os.waitstatus_to_exitcode(status), text, usage.ru_maxrss * 1024, self.events)


def tell_of_progress(tell: Callable[[str], None]) -> None:
    """What is acknowledged: each shard when its writer says that it is stored, each
    checkpoint, and what is resumed.
    """

    def around(
        owner: Any, name: str, before: Callable[..., str | None], after: Callable[..., str | None]
    ) -> None:
        real = getattr(owner, name)

        def told(*arguments: Any, **named: Any) -> Any:
            if event := before(*arguments):
                tell(event)
            result = real(*arguments, **named)
            if event := after(result, *arguments):
                tell(event)
            return result

        setattr(owner, name, told)

    def nothing(*_: Any) -> None:
        return None

    around(
        shards.Shards, "add", nothing, lambda _r, _s, rows, *_: f"stored {rows.start} {rows.stop}"
    )
    around(shards.Shards, "publishing", lambda *_: "publishing", nothing)
    around(
        run_folder.RunFolder,
        "save_checkpoint",
        lambda _s, step, *_: f"saving {step}",
        lambda _r, _s, step, *_: f"saved {step}",
    )
    around(checkpoints.Checkpoints, "newest", nothing, lambda result, *_: f"resumed {result[0]}")
    around(finishing, "export", lambda *_: "exporting", nothing)
    around(trainer, "_step", lambda *_: "step", nothing)


@dataclass
class Tally:
    """What one section tried and what of it went wrong."""

    name: str
    tried: Counter = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def check(self, what: str, right: bool, said: str = "") -> bool:
        self.tried[what] += 1
        if not right:
            self.wrong.append((what, said[-2000:]))
        return right


def drawn_again(records: list[dict]) -> list[dict]:
    """The records with the last completion of each prompt of three as its first one: strategies of
    one string each, whose naming takes no time.
    """
    return [
        record | {"y": records[row - 2]["y"]} if row % 3 == 2 else record
        for row, record in enumerate(records)
    ]


class Bench:
    """Inputs, the undisturbed results, and a fresh folder for every job."""

    def __init__(self, folder: Path, seed: int, sizes: dict[str, Any]) -> None:
        self.folder, self.sizes, self.rng, self.jobs = folder, sizes, random.Random(seed), 0
        self.model, self.data = folder / "model", folder / "data.jsonl"
        make_model().save_pretrained(self.model)
        make_tokenizer().save_pretrained(self.model)
        self.records = drawn_again(make_records(20, 3))
        write_jsonl(self.data, self.records)
        begin = time.monotonic()
        self.whole = self.job("whole")
        self.undisturbed(self.precompute(self.whole))
        self.precompute_seconds, begin = time.monotonic() - begin, time.monotonic()
        self.undisturbed(self.train(self.whole))
        self.train_seconds, begin = time.monotonic() - begin, time.monotonic()
        self.undisturbed(self.sample(self.whole))
        self.sample_seconds = time.monotonic() - begin
        self.cache = self.whole / "b.h5"

    def job(self, name: str = "") -> Path:
        self.jobs += 1
        folder = self.folder / (name or f"job{self.jobs}")
        folder.mkdir()
        return folder

    def precompute(self, job: Path, **changes: Any) -> list[Any]:
        return self._flags(
            "precompute",
            {
                "model": self.model,
                "data": self.data,
                "out": job / "b.h5",
                "shard-rows": 12,
                "batch-tokens": 100,
                "device": "cpu",
            },
            changes,
        )

    def train(self, job: Path, **changes: Any) -> list[Any]:
        return self._flags(
            "train",
            {
                "model": self.model,
                "data": self.data,
                "baseline": self.whole / "b.h5",
                "latents": 3,
                "out": job / "run",
                "steps": 8,
                "batch-tokens": 200,
                "checkpoint-every": 2,
                "device": "cpu",
            },
            changes,
        )

    def sample(self, job: Path, **changes: Any) -> list[Any]:
        return self._flags(
            "sample",
            {
                "run": self.whole / "run",
                "data": self.data,
                "n": 3,
                "max-new-tokens": 4,
                "out": job / "drawn.jsonl",
                "device": "cpu",
            },
            changes,
        )

    def drawn(self, job: Path) -> bool:
        """Whether a `sample` came to its end before the signal or the fault: a next call would
        refuse the file that is there.
        """
        # its files go before the folder does: empty, it tells nothing any more
        shards = job / "drawn.jsonl.parts"
        return (job / "drawn.jsonl").exists() and not (shards.is_dir() and any(shards.iterdir()))

    @staticmethod
    def _flags(command: str, flags: dict[str, Any], changes: dict[str, Any]) -> list[Any]:
        flags |= {name.replace("_", "-"): value for name, value in changes.items()}
        return [
            command,
            *(
                part
                for name, value in flags.items()
                for part in (f"--{name}" if len(name) > 1 else f"-{name}", value)
            ),
        ]

    def undisturbed(self, arguments: list[Any]) -> Ended:
        ended = Victim(arguments).wait()
        if ended.code:
            raise RuntimeError(f"an undisturbed call failed: {ended.text}")
        return ended

    def result(self, job: Path, command: str) -> dict[str, bytes]:
        """The bytes that must be those of the undisturbed run."""
        names = {
            "precompute": ["b.h5"],
            "sample": ["drawn.jsonl"],
            "train": [
                "run/metrics.jsonl",
                "run/posterior.safetensors",
                "run/model/model.safetensors",
                "run/checksums.json",
            ],
        }[command]
        return {
            name: (job / name).read_bytes() if (job / name).is_file() else b"" for name in names
        }

    def same(self, job: Path, command: str) -> bool:
        return self.result(job, command) == self.result(self.whole, command)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        job = self.job()
        yield job
        shutil.rmtree(job)


# Sections


def kills(bench: Bench, tally: Tally) -> None:
    """kill -9 at random moments of the whole duration, every second one aimed at what
    publishes; resumed each time.
    """
    for command, wanted, seconds, aims in (
        (
            "precompute",
            bench.sizes["precompute_kills"],
            bench.precompute_seconds,
            ("stored", "publishing"),
        ),
        ("train", bench.sizes["train_kills"], bench.train_seconds, ("saving", "exporting", "step")),
        ("sample", bench.sizes["sample_kills"], bench.sample_seconds, ("stored", "publishing")),
    ):
        killed, phases = 0, Counter()
        while killed < wanted:
            with bench.scratch() as job:
                arguments = getattr(bench, command)(job)
                stored: list[str] = []
                checkpoint, ended = 0, None
                while ended is None or ended.code:
                    victim = Victim(arguments)
                    if killed < wanted and bench.rng.random() < 0.5:
                        if victim.listen(10 * seconds, bench.rng.choice(aims)):
                            victim.listen(bench.rng.uniform(0, 0.02))
                    elif killed < wanted:
                        victim.listen(bench.rng.uniform(0, 1.1 * seconds))
                    if killed < wanted:
                        os.kill(victim.pid, signal.SIGKILL)
                    ended = victim.wait()
                    if ended.code == -signal.SIGKILL:
                        killed += 1
                        if bench.drawn(job):
                            break
                        phases[ended.events[-1].split()[0] if ended.events else "starting"] += 1
                    elif ended.code:
                        tally.check(f"{command}: resumes without a hand's help", False, ended.text)
                        break
                    stored += [event for event in ended.events if event.startswith("stored")]
                    resumed = [int(e.split()[1]) for e in ended.events if e.startswith("resumed")]
                    if resumed:
                        tally.check(
                            "acknowledged checkpoint kept",
                            resumed[0] >= checkpoint,
                            f"{resumed[0]} < {checkpoint}",
                        )
                    checkpoint = max(
                        [
                            checkpoint,
                            *(int(e.split()[1]) for e in ended.events if e.startswith("saved")),
                        ]
                    )
                if stored:
                    tally.check(
                        "acknowledged shards kept", len(stored) == len(set(stored)), str(stored)
                    )
                tally.check(
                    f"{command}: ends with the same bits", bench.same(job, command), ended.text
                )
        tally.tried[f"{command}: kill -9"] += killed
        tally.notes[f"{command}: killed after"] = dict(phases)


def interrupts(bench: Bench, tally: Tally) -> None:
    """Ctrl-C and SIGTERM at random moments: one line, exit code 130 or 143, and
    resumed to the same bits.
    """
    for command, aims in (
        ("precompute", ("stored", "publishing")),
        ("train", ("step", "saving", "exporting")),
        ("sample", ("stored", "publishing")),
    ):
        for _ in range(max(1, bench.sizes["changes"])):
            for number in (signal.SIGINT, signal.SIGTERM):
                with bench.scratch() as job:
                    victim = Victim(getattr(bench, command)(job))
                    aimed = victim.listen(60, bench.rng.choice(aims))
                    victim.listen(bench.rng.uniform(0, 0.05))
                    with suppress(ProcessLookupError):
                        os.kill(victim.pid, number)
                    ended = victim.wait()
                    if (aimed and ended.code == 0) or bench.drawn(job):  # it came after the work
                        continue
                    last = ended.text.strip().splitlines()[-1]
                    tally.check(
                        f"{command}: {number.name}",
                        ended.code == 128 + number and last.endswith("to resume") and ended.clean,
                        f"{ended.code} {ended.text}",
                    )
                    if "step" in ended.events and "exporting" not in ended.events:
                        tally.check(
                            "train: the step is stored",
                            "which is stored" in last or "saved 8" in ended.events,
                            ended.text,
                        )
                    bench.undisturbed(getattr(bench, command)(job))
                    tally.check(f"{command}: ends with the same bits", bench.same(job, command))


class Faults:
    """Patches every write, fsync and rename below a folder: counts them, or fails one of them.

    Args:
        at: the operation to fail, counted from 0; -1 counts only.
        mode: "before", "torn" (half of a write) or "after" it was done.
        kill: SIGKILL instead of an error.
    """

    def __init__(
        self, folder: Path, at: int, mode: str, kill: bool, list_to: Path | None = None
    ) -> None:
        self.folder, self.at, self.mode, self.kill, self.list_to, self.count = (
            str(folder),
            at,
            mode,
            kill,
            list_to,
            0,
        )

    def install(self) -> None:
        write, pwrite, fsync, replace = os.write, os.pwrite, os.fsync, os.replace
        self._write = write
        os.write = lambda fd, data: self.run(
            "write",
            self._path(fd),
            lambda: write(fd, data),
            lambda: write(fd, memoryview(data)[: len(data) // 2]),
        )
        os.pwrite = lambda fd, data, at: self.run(
            "write",
            self._path(fd),
            lambda: pwrite(fd, data, at),
            lambda: pwrite(fd, memoryview(data)[: len(data) // 2], at),
        )
        os.fsync = lambda fd: self.run("fsync", self._path(fd), lambda: fsync(fd))
        os.replace = lambda old, new: self.run("rename", str(new), lambda: replace(old, new))
        from transformers import PreTrainedModel, PreTrainedTokenizerBase

        for kind in (PreTrainedModel, PreTrainedTokenizerBase):  # they write from Rust and C
            self._patch_save(kind)

    def _patch_save(self, kind: type) -> None:
        real = kind.save_pretrained

        def save(one: Any, folder: Any, *arguments: Any, **named: Any) -> Any:
            def torn() -> None:
                real(one, folder, *arguments, **named)
                largest = max(Path(folder).iterdir(), key=lambda p: p.stat().st_size)
                os.truncate(largest, largest.stat().st_size // 2)

            return self.run(
                "write", str(folder), lambda: real(one, folder, *arguments, **named), torn
            )

        kind.save_pretrained = save

    @staticmethod
    def _path(fd: int) -> str:
        with suppress(OSError):
            return os.readlink(f"/proc/self/fd/{fd}")
        return ""

    def run(
        self, kind: str, path: str, action: Callable[[], Any], torn: Callable[[], Any] | None = None
    ) -> Any:
        if not path.startswith(self.folder):
            return action()
        number, self.count = self.count, self.count + 1
        if self.list_to:
            with self.list_to.open("a") as file:
                file.write(f"{kind} {path.removeprefix(self.folder)}\n")
        if number != self.at:
            return action()
        if self.mode == "torn":
            torn()
        elif self.mode == "after":
            action()
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(5, "Input/output error", path)


def faults(bench: Bench, tally: Tally) -> None:
    """Each write, fsync and rename fails in turn, before it, half done and after it:
    as an error and as a kill.
    """
    for command in ("precompute", "train", "sample"):
        with bench.scratch() as job:
            listing = bench.folder / f"operations-{command}"
            Victim(getattr(bench, command)(job), Faults(job, -1, "", False, listing).install).wait()
            tally.check(f"{command}: counting changes nothing", bench.same(job, command))
        operations = listing.read_text().splitlines()
        tally.notes[f"{command}: operations"] = dict(
            Counter(line.split()[0] for line in operations)
        )
        cases = [
            (number, mode, kill)
            for number, line in enumerate(operations)
            for mode in ("before", "torn", "after")
            for kill in (False, True)
            if mode != "torn" or line.startswith("write")
        ]
        for number, mode, kill in sorted(
            bench.rng.sample(cases, round(bench.sizes["fault_share"] * len(cases)))
        ):
            with bench.scratch() as job:
                arguments = getattr(bench, command)(job)
                ended = Victim(arguments, Faults(job, number, mode, kill).install).wait()
                what = (
                    f"{command}: {operations[number].split()[0]} {'killed' if kill else 'failed'} "
                    f"{mode}"
                )
                where = f"{number} {operations[number]} {ended.code} {ended.text}"
                if kill:
                    tally.check(what, ended.code == -signal.SIGKILL, where)
                else:  # a failing clean-up is no failure
                    told = not ended.code or ended.text.splitlines()[-1].startswith("twcli: ")
                    tally.check(what, ended.code in (0, 1) and ended.clean and told, where)
                if bench.drawn(job):
                    tally.check(
                        f"{command}: ends with the same bits", bench.same(job, command), where
                    )
                    continue
                again = Victim(arguments).wait()
                right = again.code == 0 and bench.same(job, command)
                tally.check(
                    f"{command}: ends with the same bits", right, f"{where}\nthen {again.text}"
                )


def disk(bench: Bench, tally: Tally) -> None:
    """A small file system that is enlarged in steps until all fits."""
    with bench.scratch() as job:
        mounted = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(job)], capture_output=True
            ).returncode
            == 0
        )
        tally.notes["disk"] = "tmpfs" if mounted else "RLIMIT_FSIZE: a tmpfs cannot be mounted here"
        try:
            for command in ("precompute", "train"):
                size = sum(
                    f.stat().st_size
                    for f in bench.whole.rglob("*")
                    if f.is_file() and ("run" in f.parts) == (command == "train")
                )
                step = max(4096, 2 * size // bench.sizes["disk_steps"])
                for limit in range(4096, 6 * size + 10**6, step):
                    if mounted:
                        written = sum(f.stat().st_size for f in bench.whole.glob("*.h5"))
                        kept = 0 if command == "precompute" else 2 * written
                        subprocess.run(
                            ["mount", "-o", f"remount,size={limit + kept}", str(job)], check=True
                        )
                    bound = (
                        None
                        if mounted
                        else lambda limit=limit: resource.setrlimit(
                            resource.RLIMIT_FSIZE, (limit, limit)
                        )
                    )
                    ended = Victim(getattr(bench, command)(job), bound).wait()
                    if ended.code == 0:
                        break
                    last = (ended.text.strip().splitlines() or [""])[-1]
                    clear = last.startswith("twcli: ") and (
                        "no space left" in last.lower() or "too large" in last.lower()
                    )
                    tally.check(
                        f"{command}: full disk is one line and exit 1",
                        ended.code == 1 and clear and ended.clean,
                        f"at {limit} bytes: {ended.code} {ended.text}",
                    )
                tally.check(
                    f"{command}: ends with the same bits",
                    bench.same(job, command),
                    f"{ended.code} {ended.text}",
                )
        finally:
            if mounted:
                subprocess.run(["umount", str(job)], check=True)


def flip(file: Path, place: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << bit]))


def flips(bench: Bench, tally: Tally) -> None:
    """Bits flipped and files cut in the cache, checkpoints and results: `inspect
    --verify` must notice each.
    """
    with bench.scratch() as job:
        shutil.copytree(bench.whole, job, dirs_exist_ok=True)
        run = run_folder.RunFolder(job / "run")
        (job / "drawn.jsonl").unlink()  # plain records, which hold no checksum
        inspected = [
            f
            for f in sorted(job.rglob("*"))
            if f.suffix in (".h5", ".safetensors", ".json", ".jsonl") and f.stat().st_size
            if f != run.duration_file  # for the page alone
        ]

        def noticed(file: Path) -> bool:
            try:
                if file.suffix == ".h5":
                    kept = FeatureStore if file.name.endswith(FEATURES_SUFFIX) else Cache
                    with kept(file) as opened:
                        return bool(opened.verify())
                return bool(run.problems())
            except UserError as error:
                return "\n" not in str(error)

        assert not any(noticed(file) for file in inspected)
        for number in range(bench.sizes["flips"]):
            file = inspected[number % len(inspected)] if number % 3 else job / "b.h5"
            place, bit = bench.rng.randrange(file.stat().st_size), bench.rng.randrange(8)
            flip(file, place, bit)
            where = "the cache" if file.suffix == ".h5" else "the run"
            tally.check(
                f"flip in {where} noticed", noticed(file), f"bit {bit} of byte {place} of {file}"
            )
            flip(file, place, bit)
        for file in inspected:
            data = file.read_bytes()
            for size in range(0, len(data), bench.sizes["cut"]):
                file.write_bytes(data[:size])
                tally.check("truncation noticed", noticed(file), f"{file} at {size}")
            file.write_bytes(data)
    for _ in range(bench.sizes["part_flips"]):
        for command, aim, pattern in (
            ("precompute", "stored 24", "b.h5.parts/*"),
            ("train", "saved 6", "run/checkpoints/*/*"),
            ("sample", "stored 8", "drawn.jsonl.parts/*"),
        ):
            with bench.scratch() as job:
                victim = Victim(getattr(bench, command)(job))
                victim.listen(60, aim)
                os.kill(victim.pid, signal.SIGKILL)
                victim.wait()
                file = bench.rng.choice(
                    [f for f in sorted(job.glob(pattern)) if f.is_file() and f.stat().st_size]
                )
                flip(file, bench.rng.randrange(file.stat().st_size), bench.rng.randrange(8))
                ended = Victim(getattr(bench, command)(job)).wait()
                right = ended.code == 0 and bench.same(job, command)
                tally.check(
                    f"{command}: a flip while unfinished does no harm",
                    right,
                    f"{file} {ended.text}",
                )


def provenance(bench: Bench, tally: Tally) -> None:
    """One thing that b_t depends on is changed: training refuses the cache, and
    resuming refuses the checkpoint.
    """
    rng = bench.rng
    for _ in range(bench.sizes["changes"]):
        with bench.scratch() as job:
            other_model, other_tokenizer = job / "weights", job / "tokenizer"
            for copy in (other_model, other_tokenizer):
                shutil.copytree(bench.model, copy)
            weights = other_model / "model.safetensors"
            header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
            flip(
                weights,
                header + 4 * rng.randrange((weights.stat().st_size - header) // 4),
                rng.randrange(8),
            )
            words = json.loads((other_tokenizer / "tokenizer.json").read_text())
            vocabulary = words["model"]["vocab"]
            one, two = rng.sample([word for word in vocabulary if word.startswith("w")], 2)
            vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
            (other_tokenizer / "tokenizer.json").write_text(json.dumps(words))
            order, edited = list(bench.records), [dict(r) for r in bench.records]
            i, j = rng.sample(range(len(order)), 2)
            while order[i] == order[j]:
                i, j = rng.sample(range(len(order)), 2)
            order[i], order[j] = order[j], order[i]
            edited[i]["y"] += " w3"
            newer = job / "newer.h5"
            shutil.copy(bench.cache, newer)
            with h5py.File(newer, "r+") as file:
                file.attrs["format_version"] = cache_format.FORMAT_VERSION + 1

            def other_template() -> None:
                real = ExampleEncoder.fingerprint
                ExampleEncoder.fingerprint = lambda self: {**real(self), "version": 2}

            for name, changes, said, before in (
                ("weights", {"model": other_model}, "another weights", None),
                ("tokenizer", {"model": other_tokenizer}, "another tokenizer", None),
                (
                    "template",
                    {},
                    "another template.version: the cache has 1, this call has 2",
                    other_template,
                ),
                (
                    "data order",
                    {"data": write_jsonl(job / "order.jsonl", order)},
                    f"line {min(i, j) + 1} of the data",
                    None,
                ),
                (
                    "one y",
                    {"data": write_jsonl(job / "y.jsonl", edited)},
                    f"another data: .*line {i + 1} of the data",
                    None,
                ),
                (
                    "max length",
                    {"max_length": 100},
                    "another max_length: the cache has 128, this call has 100",
                    None,
                ),
                (
                    "attention",
                    {"attention": "eager"},
                    'another attention: the cache has "sdpa", this call has "eager"',
                    None,
                ),
                (
                    "format version",
                    {"baseline": newer},
                    "format version 2, this twcli reads 1",
                    None,
                ),
            ):
                ended = Victim([*bench.train(job, **changes), "--quiet"], before).wait()
                named = all(part in ended.text for part in said.split(".*"))
                tally.check(
                    f"{name} refused and named",
                    ended.code == 2 and ended.one_line and named,
                    ended.text,
                )
                assert not (job / "run").exists()
    with bench.scratch() as job:  # the same files under the same names, but with other content
        data = job / "data.jsonl"
        for policy in ("frozen", "dynamic"):
            write_jsonl(data, bench.records)
            files = {
                "data": data,
                "baseline": job / "b.h5",
                "baseline_policy": policy,
                "out": job / policy,
            }
            bench.undisturbed([*bench.precompute(job, data=data), "--overwrite"])
            victim = Victim(bench.train(job, **files))
            victim.listen(60, "saved 4")
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            write_jsonl(data, bench.records[::-1])
            bench.undisturbed([*bench.precompute(job, data=data), "--overwrite"])
            ended = Victim([*bench.train(job, **files), "--quiet"]).wait()
            tally.check(
                "resuming on other data refused",
                ended.code == 2 and ended.one_line and "another data" in ended.text,
                ended.text,
            )


def _record(**changes: Any) -> bytes:
    return json.dumps({"x": "w0 w1", "y": "w2 w3"} | changes).encode() + b"\n"


def _hostile_data(long_line: int) -> dict[str, tuple[bytes | None, str]]:
    deep = b'{"x": "w0", "y": "w1", "answer": ' + b"[" * 100_000
    return {
        f"a line of {long_line >> 20} MiB": (None, "longer than 16 MiB"),
        "NaN": (_record(y=float("nan")), "'y'"),
        "1e999": (b'{"x": "w0", "y": 1e999}\n', "'y'"),
        "lone surrogate": (_record(y="w1 \ud800"), "surrogate"),
        "NUL": (_record(x="w0\0"), "NUL"),
        "raw NUL": (b'{"x": "w0\0", "y": "w1"}\n', "not valid JSON"),
        "100,000 deep": (deep, "nested too deeply"),
        "deep and closed": (deep + b"]" * 100_000 + b"}", "nested too deeply"),
        "not UTF-8": (b'{"x": "\xff", "y": "w1"}\n', "not UTF-8"),
        "BOM within a record": (_record()[:9] + b"\xef\xbb\xbf" + _record(), ":1: not valid JSON"),
        "UTF-16 cut off": ('{"x": "w0"}'.encode("utf-16")[:-1], "UTF-16-LE"),
        "NULs at the end": (_record() + bytes(4096), ":2: holds NUL bytes"),
        "a tag in y": (_record(y="w1 </y> w2"), "uses as a tag"),
        "empty": (b"", "no records"),
        "huge integer": (
            b'{"x": "w0", "y": "w1", "answer": ' + b"9" * 10_000 + b"}\n",
            "not valid JSON",
        ),
    }


BOMB = ", ".join(
    [
        "&a [x, x]",
        *(
            f"&{name} [{f'*{before}, ' * 9}]"
            for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
        ),
    ]
)
HOSTILE_YAML = {
    "object tag": ("data: !!python/object/apply:os.system ['touch pwned']\n", "not valid YAML"),
    "name tag": ("data: !!python/name:os.system\n", "not valid YAML"),
    "100,000 deep": ("data: " + "[" * 100_000, "not valid YAML"),
    "NaN": ("latents: .nan\n", "not of type int"),
    "1e999": ("beta: 1.0e+999\n", "not a finite number"),
    "infinity": ("batch_tokens: .inf\n", "--batch-tokens"),
    "NUL": ('data: "a\\0b"\n', "NUL"),
    "surrogate": ('data: "\\ud800"\n', "--data"),
    "bomb": (f"seed: [{BOMB}]\n", "--seed"),
    "huge number": ("seed: 0x" + "f" * 20_000 + "\n", "too large"),
    "list": ("- 1\n", "mapping"),
    "unhashable key": ("? [a]\n: 1\n", "not valid YAML"),
    "large": ("#" * 2**20, "larger than"),
}


def _hostile_caches() -> dict[str, tuple[Callable[[Any], Any], str]]:
    from tests.storage.test_cache import HOSTILE

    names = (
        "external link",
        "soft link",
        "external storage",
        "virtual dataset",
        "4 TB",
        "a bomb",
        "strings",
        "offsets below 0",
    )
    return {name: HOSTILE[name] for name in names}


def hostile(bench: Bench, tally: Tally) -> None:
    """Inputs made to harm: one clear line, exit code 2, less than 1 GiB of memory."""
    from tests.storage.test_cache import forge

    memory = 0

    def refused(name: str, arguments: list[Any], says: str) -> None:
        nonlocal memory
        ended = Victim([*arguments, "--quiet"] if arguments[0] != "inspect" else arguments).wait()
        memory = max(memory, ended.memory)
        clear = ended.one_line and says in ended.text and len(ended.text) < 1000
        tally.check(
            name.split(":")[0],
            ended.code == 2 and clear and ended.memory < GIB,
            f"{name}: exit {ended.code}, {ended.memory >> 20} MiB: {ended.text[:500]}",
        )

    with bench.scratch() as job:
        for name, (content, says) in _hostile_data(bench.sizes["long_line"]).items():
            with (job / "d.jsonl").open("wb") as file:
                if content is None:
                    file.write(b'{"x": "')
                    for _ in range(bench.sizes["long_line"] >> 20):
                        file.write(b"w" * 2**20)
                else:
                    file.write(content)
            refused(f"data: {name}", bench.precompute(job, data=job / "d.jsonl"), says)
            if bench.sizes["launches"]:
                refused(f"data: {name}", bench.train(job, data=job / "d.jsonl"), says)
        for name, (content, says) in HOSTILE_YAML.items():
            (job / "c.yaml").write_text(content)
            bare = bench.train(job)
            # it would win over the file
            if (flag := f"--{content.split(':')[0].replace('_', '-')}") in bare:
                del bare[bare.index(flag) : bare.index(flag) + 2]
            refused(f"config: {name}", [*bare, "--config", job / "c.yaml"], says)
        assert not Path("pwned").exists()
        (job / "secret.bin").write_bytes(bytes(20))
        with h5py.File(job / "secret.h5", "w") as file:
            file["nll"] = np.ones(5, "<f4")
        for name, (change, says) in _hostile_caches().items():
            forge(job / "b.h5", change)
            refused(f"cache: {name}", ["inspect", job / "b.h5"], says)
            refused(f"cache: {name}", bench.train(job, baseline=job / "b.h5"), says)
        pickled = job / "pickled"
        shutil.copytree(bench.model, pickled)
        (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
        refused(
            "model: pickle", bench.precompute(job, model=pickled), "is a pickle and is not loaded"
        )
        remote = job / "remote"
        shutil.copytree(bench.model, remote)
        settings = json.loads((remote / "config.json").read_text())
        settings |= {
            "model_type": "evil",
            "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"},
        }
        (remote / "config.json").write_text(json.dumps(settings))
        (remote / "evil.py").write_text(f"open({str(job / 'pwned')!r}, 'w')")
        refused("model: remote code", bench.precompute(job, model=remote), "remote")
        assert not (job / "pwned").exists()
    tally.notes["most memory"] = f"{memory >> 20} MiB"


def fuzz(bench: Bench, tally: Tally) -> None:
    """Mutated bytes for each reader, in a process of its own: only UserError may come out."""
    words = [
        b'"x"',
        b'"y"',
        b'"id"',
        b"{",
        b"}",
        b"[" * 50,
        b"\\ud800",
        b"\0",
        b"1e999",
        b"NaN",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r\n",
        b": ",
        b"- ",
        b"&a ",
        b"*a",
        b"!!python/name:os.system",
        b"? ",
        b"|",
        b"'",
        b"0x",
        b".inf",
        b"latents",
        b"9" * 30,
        b"\x7f\xff\xff\xff",
        b"\x89HDF\r\n\x1a\n",
    ]
    yaml = (
        b"data: d.jsonl\nmodel: m\nbaseline: b.h5\nout: run\nlatents: 3\nbeta: 0.5\nweighting: "
        b"mixed\nlr: 1.0e-3\noverwrite: true\n"
        b"steps: null\n"
    )

    def read_config(path: Path) -> None:
        TrainConfig.from_mapping(read_yaml(str(path)), str(path))

    def read_cache(path: Path) -> None:
        with Cache(path) as cache:
            cache.read(np.arange(min(cache.rows, 50)))
            cache.verify()

    def read_data(path: Path) -> None:
        read_examples(str(path), strategy_field="strategy")

    readers = {
        "JSONL": (b"".join(bench.data.read_bytes().splitlines(keepends=True)[:12]), read_data),
        "config": (yaml, read_config),
        "cache": (bench.cache.read_bytes(), read_cache),
    }
    for name, (good, read) in readers.items():
        file = bench.folder / f"fuzzed-{name}"
        report = bench.folder / f"report-{name}"
        pid = os.fork()
        if pid == 0:
            _fuzz(
                file,
                report,
                good,
                read,
                words,
                random.Random(bench.rng.random()),
                bench.sizes["fuzz_seconds"],
            )
        _, status = os.waitpid(pid, 0)
        found = json.loads(report.read_text()) if report.exists() else {}
        tally.check(
            f"{name}: no crash",
            status == 0 and not found["wrong"],
            f"status {status}, {found.get('wrong')}, the input is {file}",
        )
        tally.tried[f"{name}: inputs"] += found.get("tried", 0)
        tally.notes[f"{name}: refused"] = found.get("refused")
        bench.rng.random()


def _fuzz(
    file: Path,
    report: Path,
    good: bytes,
    read: Callable[[Path], Any],
    words: list[bytes],
    rng: random.Random,
    seconds: float,
) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (16 * GIB, 16 * GIB))
        tried, refused, wrong, end = 0, 0, [], time.monotonic() + seconds
        while time.monotonic() < end and not wrong:
            file.write_bytes(_mutated(good, words, rng))
            signal.alarm(60)
            tried += 1
            try:
                read(file)
            except UserError as error:
                refused += 1
                if len(str(error)) > 2000:
                    wrong.append(str(error))
            except BaseException:
                wrong.append(traceback.format_exc())
            signal.alarm(0)
        report.write_text(json.dumps({"tried": tried, "refused": refused, "wrong": wrong}))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _mutated(good: bytes, words: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, size, start = (
            rng.randrange(len(data) + 1),
            rng.choice((1, 1, 4, 30)),
            rng.randrange(len(data) + 1),
        )
        new = rng.choice(
            (
                b"",
                bytes([rng.randrange(256)]),
                rng.choice(words),
                bytes(data[start : start + size]),
                bytes(byte ^ 1 << rng.randrange(8) for byte in data[place : place + 1]),
            )
        )
        data[place : place + rng.choice((0, size, len(new)))] = new
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.05 else data)


def writers(bench: Bench, tally: Tally) -> None:
    """Eight writers want one cache: one gets it, the others say who has it;
    every third holder is killed.
    """
    offsets, hashes = np.arange(5), np.zeros((4, 16), np.uint8)
    for number in range(bench.sizes["rounds"]):
        with bench.scratch() as job:
            path = job / "b.h5"
            go, told, done = os.pipe(), os.pipe(), os.pipe()
            pids = []
            for _ in range(8):
                pid = os.fork()
                if pid == 0:
                    os.read(go[0], 1)
                    text = "crashed"
                    try:
                        with CacheWriter(
                            path, fingerprint={}, offsets=offsets, row_hash=hashes
                        ) as writer:
                            os.write(told[1], f"{os.getpid()} won\n".encode())
                            os.read(done[0], 1)
                            writer.write(range(4), np.ones(4, np.float32))
                            writer.publish()
                            os._exit(0)
                    except UserError as error:
                        text = str(error)
                    os.write(told[1], f"{os.getpid()} {text}\n".encode())
                    os._exit(0)
                pids.append(pid)
            os.write(go[1], b"x" * 8)
            lines: list[str] = []
            with os.fdopen(told[0]) as stream:
                lines = [stream.readline().strip() for _ in range(8)]
                winners = [line.split()[0] for line in lines if line.endswith(" won")]
                if tally.check("one wins", len(winners) == 1, str(lines)):
                    right = all(
                        f"process {winners[0]} on " in line
                        for line in lines
                        if not line.endswith(" won")
                    )
                    tally.check("the others say who holds it", right, str(lines))
                    if number % 3 == 0:
                        os.kill(int(winners[0]), signal.SIGKILL)
                os.write(done[1], b"x" * 8)
                for pid in pids:
                    os.waitpid(pid, 0)
            if number % 3 == 0:
                with CacheWriter(path, fingerprint={}, offsets=offsets, row_hash=hashes) as writer:
                    writer.write(range(4), np.ones(4, np.float32))
                    writer.publish()
            with Cache(path) as cache:
                tally.check(
                    "the cache is right",
                    not cache.verify() and cache.read(np.arange(4))[0].tolist() == [1] * 4,
                )
            for end in (*go, told[1], *done):
                os.close(end)


def processes(bench: Bench, tally: Tally) -> None:
    """Two processes over gloo: the same cache, the same gradients; a killed rank
    ends the job, which resumes.
    """

    def call(*arguments: Any) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def done(process: subprocess.Popen) -> str:
        text = process.communicate(timeout=300)[1]
        if process.returncode:
            raise RuntimeError(f"an undisturbed call failed: {text}")
        return text

    with bench.scratch() as job:
        text = done(call(*LAUNCH, "-m", "twcli", *bench.precompute(job)))
        tally.check("precompute: the same bits as one process", bench.same(job, "precompute"), text)
        if not bench.sizes["launches"]:
            return
        for name, changes in (
            ("hold", {}),
            ("free", {"warm-start": "none"}),
        ):
            flags = bench.train(job, out=job / f"run-{name}", steps=2, **changes)
            other = bench.train(job, out=job / f"run-{name}-2", steps=2, **changes)
            # the batches of two
            done(call("-m", "tests.dump_gradients", job / name, *flags, "--accumulate", 2))
            done(call(*LAUNCH, "-m", "tests.dump_gradients", job / f"{name}-2", *other))
            one, two = load_file(job / name), load_file(job / f"{name}-2")
            difference = max(float((one[key] - two[key]).abs().max()) for key in one)
            size = max(float(one[key].abs().max()) for key in one)
            tally.notes[f"{name}: largest difference of a gradient, largest gradient"] = (
                f"{difference:.1e}, {size:.1f}"
            )
            right = one.keys() == two.keys() and difference <= 1e-6 * max(1, size)
            tally.check(
                "gradients within 1e-6 of the largest", right, f"{name}: {difference} of {size}"
            )
        whole, broken = (
            bench.train(job, out=job / name, steps=300, checkpoint_every=20)
            for name in ("whole", "broken")
        )
        done(call(*LAUNCH, "-m", "twcli", *whole))
        slowest = 0.0
        run = run_folder.RunFolder(job / "broken")
        for rank in (1, 0, 1):
            before, process = run.checkpoints.last, call(*LAUNCH, "-m", "twcli", *broken)
            while run.checkpoints.last == before and process.poll() is None:
                time.sleep(0.02)
            next(
                p
                for p in psutil.Process(process.pid).children(recursive=True)
                if p.environ().get("RANK") == str(rank)
            ).kill()
            begin = time.monotonic()
            process.communicate(timeout=120)
            slowest = max(slowest, time.monotonic() - begin)
            tally.check(
                "a killed rank ends the job within 60 s",
                process.returncode != 0 and time.monotonic() - begin < 60,
            )
        tally.notes["slowest end after a killed rank"] = f"{slowest:.1f} s"
        text = done(call(*LAUNCH, "-m", "twcli", *broken))
        same = all(
            (job / "whole" / name).read_bytes() == (job / "broken" / name).read_bytes()
            for name in ("metrics.jsonl", "model/model.safetensors", "posterior.safetensors")
        )
        tally.check(
            "the job resumes to the same bits", same and "resuming after step" in text, text
        )


SECTIONS = {
    s.__name__: s
    for s in (kills, interrupts, faults, disk, flips, provenance, hostile, fuzz, writers, processes)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--short", action="store_true", help="a minute instead of hours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "torture.json")
    options = parser.parse_args()
    runtime.quiet_transformers()
    torch.set_num_threads(1)
    # After a fork torch makes its thread pool again at the first call, and not safely: threads that
    # load weights would race for it.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    sizes, results = SHORT if options.short else FULL, {}
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        bench = Bench(Path(folder), options.seed, sizes)
        for name in options.only:
            tally, begin = Tally(name), time.monotonic()
            bench.rng = random.Random(f"{options.seed} {name}")
            SECTIONS[name](bench, tally)
            results[name] = {
                "tried": dict(tally.tried),
                "wrong": tally.wrong,
                "notes": tally.notes,
                "seconds": round(time.monotonic() - begin, 1),
            }
            show(name, results[name])
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(
                json.dumps(
                    {"seed": options.seed, "short": options.short, "sections": results}, indent=1
                )
                + "\n"
            )
    return int(any(result["wrong"] for result in results.values()))


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}  ({result['seconds']:.0f} s)")
    wrong = Counter(what for what, _ in result["wrong"])
    for what, count in result["tried"].items():
        print(f"  {what:<60} {count:>8}   {f'{wrong[what]} wrong' if wrong[what] else 'all right'}")
    for what, note in result["notes"].items():
        print(f"  {what}: {note}")
    for what, said in result["wrong"][:5]:
        print(f"  ! {what}: {said[:1500]}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
