"""The run folder: config.yaml, metrics.jsonl, checkpoints/, posterior.safetensors, model/,
checksums.json and report.html.

The only module that writes there. A folder or file appears under its final name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save

from twcli.config import TrainConfig, read_yaml, to_yaml
from twcli.durable import sync_folder, write_durably
from twcli.errors import UserError, WorkFailed

LOCK = ".lock"
NOT_IDENTITY = ("overwrite", "out", "device", "keep_checkpoints", "checkpoint_every")  # may change between a run and its resumption


class RunFolder:
    """Paths of one run and what is written there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.posterior_file = self.path / "posterior.safetensors"
        self.checksums_file = self.path / "checksums.json"
        self.model = self.path / "model"
        self.report = self.path / "report.html"

    @property
    def done(self) -> bool:
        return self.model.is_dir()

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Holds the run's lock; the system releases a dead holder's. A folder in which no run was begun goes again.

        Raises:
            UserError: another process trains here, or the folder cannot be written.
            WorkFailed: the disk failed meanwhile.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, blocking=False)
            lock.acquire()
        except Timeout as error:
            raise UserError(f"{self.path}: another process is training here; wait for it or give another --out") from error
        except OSError as error:
            raise UserError(f"{error.filename or self.path}: cannot be written: {error.strerror}") from error
        try:
            yield
        except OSError as error:
            raise WorkFailed(f"{error.filename or self.path}: {error.strerror}; run the same command again to resume") from error
        finally:
            if [p.name for p in self.path.iterdir()] == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
            lock.release()

    def check(self, config: TrainConfig) -> None:
        """Writes nothing; `--overwrite` allows any run.

        Raises:
            UserError: it holds a run with other settings (the first one is named), or files of something else.
        """
        if self.config_file.is_file():
            if not config.overwrite:
                self._check_same(config)
            return
        strangers = [p.name for p in (self.path.iterdir() if self.path.is_dir() else ()) if p.name != LOCK and p.name not in self._own()]
        if strangers:
            raise UserError(f"{self.path}: holds {strangers[0]} but no run; give an empty folder")

    def begin(self, config: TrainConfig) -> None:
        """Puts down the settings, once everything else is known to be right; `--overwrite` first removes the old run."""
        if config.overwrite:
            self._clear()
        if not self.config_file.is_file():
            write_durably(self.config_file, to_yaml(config).encode())

    def _own(self) -> set[str]:
        """Names that a run makes, those of writes that were cut off included."""
        files = (self.config_file, self.metrics_file, self.posterior_file, self.report, self.checksums_file)
        return {name for file in files for name in (file.name, file.name + ".tmp")} | {"checkpoints", "model", ".model"}

    def _clear(self) -> None:
        self.config_file.unlink(missing_ok=True)  # first: what is left of the rest belongs to no run any more
        for path in self.path.iterdir():
            if path.name in self._own():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_same(self, config: TrainConfig) -> None:
        there, here = self.read_config().to_mapping(), config.to_mapping()
        for key, value in here.items():
            if key not in NOT_IDENTITY and there[key] != value:
                raise UserError(f"{self.path}: holds a run with {key}: {there[key]}, this one has {value}; "
                                "give another --out, or --overwrite to start anew")

    def read_config(self) -> TrainConfig:
        """Raises UserError where there is no run."""
        if not self.config_file.is_file():
            raise UserError(f"{self.path}: holds no run (no config.yaml); --run takes the folder of `twcli train --out`")
        return TrainConfig.from_mapping(read_yaml(str(self.config_file)), str(self.config_file))

    # metrics

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines; a line torn by a kill is left out."""
        if not self.metrics_file.is_file():
            return []
        return [json.loads(line) for line in self.metrics_file.read_bytes().split(b"\n")[:-1]]

    def keep_metrics(self, steps: int) -> None:
        """Cuts the file back to what a checkpoint at `steps` had seen."""
        kept = [m for m in self.read_metrics() if m["step"] <= steps]
        write_durably(self.metrics_file, "".join(_line(m) for m in kept).encode())

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(_line(metrics))

    # checkpoints

    def save_checkpoint(self, step: int, tensors: dict[str, torch.Tensor], keep: int) -> None:
        """One folder a checkpoint, published by rename; older ones beyond `keep` are removed afterwards."""
        folder = self.checkpoints / f"step-{step:08d}"
        staged = self.checkpoints / f".step-{step:08d}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_durably(staged / "state.safetensors", data)
        info = {"step": step, "sha256": hashlib.sha256(data).hexdigest()}
        write_durably(staged / "checkpoint.json", json.dumps(info).encode())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staged, folder)
        sync_folder(self.checkpoints)
        for old in self._checkpoint_folders()[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    def newest_checkpoint(self) -> tuple[int, dict[str, torch.Tensor], list[str]]:
        """(step, tensors, notes): the newest undamaged checkpoint; step 0 and nothing where there is none."""
        notes = []
        for folder in reversed(self._checkpoint_folders()):
            try:
                step, tensors = _load_checkpoint(folder)
            except CHECKPOINT_ERRORS as error:
                notes.append(f"{folder}: damaged ({error}); passed over")
            else:
                return step, tensors, notes
        return 0, {}, notes

    def _checkpoint_folders(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*")) if self.checkpoints.is_dir() else []

    # results

    def save_posterior(self, tensors: dict[str, torch.Tensor]) -> None:
        write_durably(self.posterior_file, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))

    def load_posterior(self) -> dict[str, torch.Tensor]:
        """Raises UserError where the file is missing or damaged."""
        try:
            return load(self.posterior_file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.posterior_file}: cannot be read: {error}") from error

    @contextmanager
    def publishing_model(self) -> Iterator[Path]:
        """A folder to save the model in; it becomes `model/` when the block ends well, checksums beside it."""
        staged = self.path / ".model"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        yield staged
        sums = {}
        for file in sorted(staged.rglob("*")):
            if file.is_file():
                with file.open("rb") as stream:
                    sums[f"model/{file.relative_to(staged)}"] = hashlib.file_digest(stream, "sha256").hexdigest()
                    os.fsync(stream.fileno())
        sums[self.posterior_file.name] = hashlib.sha256(self.posterior_file.read_bytes()).hexdigest()
        write_durably(self.checksums_file, json.dumps(sums, indent=1).encode())
        os.replace(staged, self.model)
        sync_folder(self.path)

    def problems(self) -> list[str]:
        """One line for each checkpoint or result that is damaged; reads all of them."""
        problems = []
        for folder in self._checkpoint_folders():
            try:
                _load_checkpoint(folder)
            except CHECKPOINT_ERRORS as error:
                problems.append(f"{folder}: damaged ({error})")
        if self.done:
            problems += self._damaged_results()
        return problems

    def _damaged_results(self) -> list[str]:
        try:
            sums = json.loads(self.checksums_file.read_bytes())
            files = [(self.path / name, wanted) for name, wanted in sums.items()]
        except (OSError, ValueError, AttributeError) as error:
            return [f"{self.checksums_file}: cannot be read ({error})"]
        problems = []
        for file, wanted in files:
            try:
                with file.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
                        problems.append(f"{file}: its checksum differs")
            except OSError as error:
                problems.append(f"{file}: cannot be read: {error.strerror}")
        return problems


CHECKPOINT_ERRORS = (OSError, ValueError, KeyError, TypeError, SafetensorError)


def _load_checkpoint(folder: Path) -> tuple[int, dict[str, torch.Tensor]]:
    info = json.loads((folder / "checkpoint.json").read_text())
    data = (folder / "state.safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != info["sha256"] or folder.name != f"step-{info['step']:08d}":
        raise ValueError("checksum differs")
    return info["step"], load(data)


def _line(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics, allow_nan=False) + "\n"
