"""The run folder: config.yaml, metrics.jsonl, checkpoints/, posterior.safetensors, model/,
adapter/, tensorboard/, naming.json, duration.json, checksums.json, verdict.json, report.html,
samples.jsonl and served.jsonl.

Only this module writes in it, except for the report, which the command line writes, and what
`twcli eval` draws (--samples, --server). A folder or file appears under its final name when it is
complete.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from twcli.config.inputs import AUTO
from twcli.config.options import read_yaml, to_yaml
from twcli.config.train import TrainConfig
from twcli.errors import (
    UserError,
    WorkFailed,
    first_difference,
    first_line,
    how_to_resume,
    resumable,
)
from twcli.storage.checkpoints import Checkpoints, as_bytes, json_line, sha256
from twcli.storage.durable import replacing, sync_folder, write_all, write_durably

if TYPE_CHECKING:
    import torch

# what a training settles where its options leave it open
SETTLED = ("latents", "template", "adapt", "batch_tokens", "lr")
SEED_FOLDER = re.compile(r"seed-([0-9]{1,10})")
LOCK = ".lock"
VERDICT = ("kind", "sentence", "advice", "command", "data", "date")
TEMPLATE = "template.txt"  # in model/: the template, where it was a text file
CHAT_TEMPLATE = "chat_template.jinja"  # in model/, where transformers puts it


class RunFolder:
    """The files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self.posterior_file = self.path / "posterior.safetensors"
        self.checksums_file = self.path / "checksums.json"
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        self.naming_file = self.path / "naming.json"
        self.duration_file = self.path / "duration.json"
        self.verdict_file = self.path / "verdict.json"
        self.report = self.path / "report.html"
        self.samples = self.path / "samples.jsonl"
        self.served = self.path / "served.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self._metrics_hash = hashlib.sha256()
        self._tracker: Any = None
        self._overwrites = False

    def several(self) -> list[RunFolder]:
        """The runs of `twcli train --seeds` in this folder, by seed; empty where it is no folder of
        runs.
        """
        if self.config_file.is_file() or not self.path.is_dir():
            return []
        found = {}
        for folder in self.path.iterdir():
            name = SEED_FOLDER.fullmatch(folder.name)
            if name and (folder / "config.yaml").is_file():
                found[int(name[1])] = RunFolder(folder)
        return [found[seed] for seed in sorted(found)]

    @property
    def template(self) -> str:
        """The value of `--template` for the model of this run: the template of its training."""
        file = self.model / TEMPLATE
        if file.is_file():
            return str(file)
        if self.config_file.is_file():
            asked = self.read_config().template
        else:
            asked = "tags"
        # The run's own copy: it has the variables of the training, and is there when another
        # version of the model is not.
        if asked != "tags":
            return str(self.model / CHAT_TEMPLATE)
        return asked

    @property
    def done(self) -> bool:
        """Whether the run has been finished."""
        # a killed `--overwrite` leaves a model without settings
        return self.config_file.is_file() and self.model.is_dir()

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Holds the run's lock; the system releases the lock of a dead process. A folder created
        here is removed again if no run was started in it.

        Raises:
            UserError: another process trains here, or the folder cannot be written.
            WorkFailed: the disk failed meanwhile.
            Interrupted: a signal came.
        """
        there = self.path.is_dir()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, blocking=False)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{self.path}: another process is training here; wait for it or give another --out"
            ) from error
        except OSError as error:
            raise UserError(
                f"{error.filename or self.path}: cannot be written: {error.strerror or error}"
            ) from error
        try:
            with resumable(overwrite=lambda: self._overwrites):
                yield
        except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
            place = getattr(error, "filename", None) or self.path
            reason = getattr(error, "strerror", None) or first_line(error)
            hint = how_to_resume(self._overwrites)
            raise WorkFailed(f"{place}: {reason}; {hint}") from error
        finally:
            # removal may fail (a mount point, a folder in use); the earlier error is reported
            # instead
            with suppress(OSError):
                if [p.name for p in self.path.iterdir()] == [LOCK]:
                    (self.path / LOCK).unlink()
                    if not there:
                        self.path.rmdir()
            lock.release()

    def check(self, config: TrainConfig) -> None:
        """Checks that this run may be written here, and writes nothing; `--overwrite` allows any
        old run.

        Raises:
            UserError: it holds a run with other settings (the first difference is named), or
                unrelated files; or a package that the settings need is missing.
        """
        tracker = config.tracker
        if tracker is not None and importlib.util.find_spec(tracker) is None:
            raise UserError(f"--tracker {tracker}: needs pip install {tracker}")
        if self.config_file.is_file():
            if not config.overwrite:
                self._check_same(config)
            return
        if self.path.is_dir():
            names = [file.name for file in self.path.iterdir()]
        else:
            names = []
        own = {LOCK, *self._own()}
        strangers = [name for name in names if name not in own]
        if strangers:
            raise UserError(f"{self.path}: holds {strangers[0]} but no run; give an empty folder")

    def settled(self, config: TrainConfig) -> TrainConfig:
        """`config` with what the existing run settled where the options leave it open: the number
        of latents, and what follows from the model and the data.
        """
        if config.overwrite or not self.config_file.is_file():
            return config
        there = self.read_config()
        open_names = [name for name in SETTLED if getattr(config, name) in (None, AUTO)]
        return dataclasses.replace(config, **{name: getattr(there, name) for name in open_names})

    def begin(self, config: TrainConfig, naming: dict[str, Any] | None = None) -> None:
        """Writes the settings, after all checks have passed; `--overwrite` first removes the old
        run.

        Args:
            naming: what discovery found out about the records' latents, for a later evaluation of
                the run.
        """
        if config.overwrite:
            self._clear()
        if naming is not None:  # a resumed run's as well: it may have been damaged meanwhile
            write_durably(self.naming_file, json_line(naming))
        if not self.config_file.is_file():
            write_durably(self.config_file, to_yaml(config).encode())
        self._overwrites = config.overwrite

    def _own(self) -> set[str]:
        """File and folder names that belong to a run, unfinished writes included."""
        files = (
            self.config_file,
            self.naming_file,
            self.duration_file,
            self.metrics_file,
            self.posterior_file,
            self.verdict_file,
            self.report,
            self.samples,
            self.served,
            self.checksums_file,
        )
        folders = {"checkpoints", "model", ".model", "adapter", ".adapter", "tensorboard"}
        for drawn in (self.samples, self.served):
            folders |= {f"{drawn.name}.lock", f"{drawn.name}.parts"}
        return folders | {name for file in files for name in (file.name, file.name + ".tmp")}

    def _clear(self) -> None:
        # the settings go first: without them the remaining files belong to no run
        """Removes what this package wrote, and leaves other files alone."""
        self.config_file.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.name in self._own():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _check_same(self, config: TrainConfig) -> None:
        """Raises UserError that names the first setting in which the run there differs."""
        there = self.read_config().identity()
        for key, value in self.settled(config).identity().items():
            if there[key] != value:
                raise UserError(
                    f"{self.path}: holds a run with {key}: {there[key]}, this one has {value}; "
                    "give another --out, or --overwrite to start over"
                )

    def read_config(self) -> TrainConfig:
        """Raises UserError if there is no run."""
        if not self.config_file.is_file():
            raise UserError(
                f"{self.path}: holds no run (no config.yaml); give the folder of `twcli train "
                "--out`"
            )
        settings = read_yaml(str(self.config_file))
        for name in TrainConfig.retired:  # of a run that an earlier version made
            settings.pop(name, None)
        return TrainConfig.from_mapping(settings, str(self.config_file))

    def read_fields(self) -> dict[str, str] | None:
        """How the records of the training were read, as `stream_examples` takes `trained`; of
        several runs by the first. None where there is no run.
        """
        runs = self.several()
        if runs:
            return runs[0].read_fields()
        if not self.config_file.is_file():
            return None
        config = self.read_config()
        return {name: getattr(config, name) for name in ("format", "x_field", "y_field")}

    # metrics

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines; a last line that a kill cut off is left out.

        Raises:
            UserError: a line is damaged, or the lines differ from those at the newest checkpoint.
        """
        # read before the metrics, since that file only grows
        newest = self.checkpoints.newest_content()
        if self.metrics_file.is_file():
            data = self.metrics_file.read_bytes()
        else:
            data = b""
        lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
        metrics: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                metrics.append(json.loads(line))
                sound = metrics[-1]["step"] == metrics[0]["step"] + number - 1
            except (ValueError, TypeError, KeyError):
                sound = False
            if not sound:
                raise UserError(
                    f"{self.metrics_file}:{number}: is damaged; move the file away to "
                    "continue without it"
                )
        stored = newest.get("step", 0)
        count = sum(entry["step"] <= stored for entry in metrics)
        before = b"".join(lines[:count])
        if before and sha256(before) != newest["metrics_sha256"]:
            raise UserError(
                f"{self.metrics_file}: is damaged: not what it was at step {newest['step']}; "
                "move it away to continue without it"
            )
        return metrics

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Adds a line to the metrics and, within `tracked`, logs its numbers there."""
        line = json_line(metrics)
        with self.metrics_file.open("ab", buffering=0) as file:
            write_all(file.fileno(), line)
        self._metrics_hash.update(line)
        if self._tracker is not None:
            numbers = {
                name: value
                for name, value in metrics.items()
                if isinstance(value, int | float) and name != "step"
            }
            self._tracker.log(numbers, step=metrics["step"])

    @contextmanager
    def tracked(self, tracker: str, step: int) -> Iterator[None]:
        """Within it `append_metrics` also logs to one of accelerate's trackers. TensorBoard's
        events of steps after `step` are discarded.

        Args:
            tracker: one of `TRACKERS`.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        made = LOGGER_TYPE_TO_CLASS[tracker]
        if tracker == "tensorboard":
            self._tracker = made(self.tensorboard.name, str(self.path), purge_step=step + 1)
        else:
            self._tracker = made(self.path.name)
        self._tracker.start()
        try:
            yield
        finally:
            self._tracker.finish()
            self._tracker = None

    # checkpoints, with the metrics up to them

    def save_checkpoint(
        self, step: int, tensors: dict[str, torch.Tensor], keep: int, provenance: dict[str, Any]
    ) -> None:
        """Saves a checkpoint and keeps the newest `keep`.

        Args:
            tensors: by name, each of its own shape, as of `training.state.snapshot`.
            provenance: what a run must be made from to resume here.
        """
        self.checkpoints.path.mkdir(exist_ok=True)
        # sync this folder and the metrics before a checkpoint relies on them
        sync_folder(self.path)
        with self.metrics_file.open("rb") as file:
            os.fsync(file.fileno())
        self.checkpoints.save(
            step,
            tensors,
            keep,
            metrics_sha256=self._metrics_hash.hexdigest(),
            provenance=provenance,
        )

    def cut_back(self, step: int) -> list[dict[str, Any]]:
        """Goes back to the checkpoint of `step`: removes later checkpoints and metrics, returns the
        remaining metrics.

        Raises:
            UserError: the metrics are damaged.
        """
        self.checkpoints.remove_after(step)
        left = [m for m in self.read_metrics() if m["step"] <= step]
        data = b"".join(map(json_line, left))
        self._metrics_hash = hashlib.sha256(data)
        write_durably(self.metrics_file, data)
        return left

    def read_naming(self) -> dict[str, Any]:
        """The `naming` that `begin` stored; empty if it stored none."""
        with suppress(OSError, ValueError):
            naming = json.loads(self.naming_file.read_bytes())
            if isinstance(naming, dict):
                return naming
        return {}

    def save_duration(self, step: int, seconds: float) -> None:
        """Stores how long the training took up to a step."""
        duration = {"step": step, "seconds": round(seconds, 1)}
        write_durably(self.duration_file, json_line(duration))

    def read_duration(self, step: int | None = None) -> float | None:
        """Seconds; None where they are not known.

        Args:
            step: up to which it must have been stored; None for any.
        """
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self.duration_file.read_bytes())
            if step in (None, found["step"]):
                return float(found["seconds"])
        return None

    # the verdict, which is of the newest judgement and no result of the training itself

    def save_verdict(
        self, verdict: dict[str, str], command: str, data: str, date: datetime.date
    ) -> None:
        """Stores what `train` or `eval` said of the run.

        Args:
            verdict: kind, sentence and advice.
            command: that said it.
            data: the records that it is about.

        Raises:
            OSError: it cannot be written.
        """
        stored = {**verdict, "command": command, "data": data, "date": date.isoformat()}
        write_durably(self.verdict_file, _with_checksum(stored))

    def read_verdict(self) -> dict[str, str] | None:
        """The `kind`, `sentence` and `advice` stored last, with the `command`, `data` and `date`;
        None where there is none, or it is damaged.
        """
        with suppress(OSError, ValueError, TypeError, KeyError):
            text = self.verdict_file.read_bytes()
            found = json.loads(text)
            verdict = {name: found[name] for name in VERDICT}
            if text == _with_checksum(verdict):
                return verdict
        return None

    # results

    def save_posterior(self, tensors: dict[str, torch.Tensor]) -> None:
        """Stores the posterior's tensors by name, in safetensors' format: all of them or, after a
        kill, those before.
        """
        write_durably(self.posterior_file, as_bytes(tensors))

    def load_posterior(self) -> dict[str, torch.Tensor]:
        """The posterior's own weights by name, each of its own shape (..).

        Raises:
            UserError: the file is missing or damaged.
        """
        from safetensors.torch import load  # imports torch, which takes seconds

        try:
            return load(self.posterior_file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.posterior_file}: cannot be read: {error}") from error

    def save_adapter(self, adapter: Any) -> None:
        """Saves only the LoRA weights and the new tokens' embedding rows, in the format that peft
        loads onto the original model.
        """
        with replacing(self.adapter) as staged:
            adapter.save_pretrained(staged, save_embedding_layers=False)
            _synced_sums(staged, "adapter")

    @contextmanager
    def publishing_model(self) -> Iterator[Path]:
        """A folder to save the model in. If the block succeeds it becomes `model/`, and the
        checksums of all results are written.
        """
        with replacing(self.model) as staged:
            yield staged
            files = [self.metrics_file, self.posterior_file]
            if self.naming_file.is_file():
                files.append(self.naming_file)
            sums = {file.name: sha256(file.read_bytes()) for file in files}
            if self.adapter.is_dir():
                sums |= _synced_sums(self.adapter, "adapter")
            sums |= _synced_sums(staged, "model")
            write_durably(self.checksums_file, json.dumps(sums, indent=1).encode())

    def check_results(self) -> None:
        """Checks the model, the metrics and the posterior against the checksums that training
        wrote.

        Raises:
            UserError: a file of the finished run is not what training wrote.
        """
        problems = self._damaged_results()
        if problems:
            raise UserError(f"{problems[0]}; run its `twcli train` command again with --overwrite")

    def problems(self) -> list[str]:
        """One line for each checkpoint or result that is damaged; reads all of them."""
        problems = self.checkpoints.problems()
        if self.done:
            problems += self._damaged_results()
        # nothing that uses the run reads it, and eval replaces it
        if self.verdict_file.exists() and self.read_verdict() is None:
            problems.append(
                f"{self.verdict_file}: its checksum differs; twcli eval writes it again"
            )
        try:
            self.read_metrics()
            settings = self.read_config().identity()
        except UserError as error:
            return [*problems, str(error)]
        content = self.checkpoints.newest_content()
        provenance = content.get("provenance", {"settings": settings})
        trained = provenance["settings"]
        # an earlier version may have had options that are gone, and none of the new ones
        known = {name: value for name, value in trained.items() if name in settings}
        different = first_difference({name: settings[name] for name in known}, known)
        if different:
            name, stored, wanted = different
            problems.append(f"{self.config_file}: {name} is {stored}, but was {wanted} in training")
        return problems

    def _damaged_results(self) -> list[str]:
        """What is wrong with the files of a finished run, by their checksums."""
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


def _with_checksum(verdict: dict[str, str]) -> bytes:
    """The line of verdict.json: the verdict, and the sha256 of its own JSON."""
    checksum = hashlib.sha256(json_line(verdict)).hexdigest()
    return json_line({**verdict, "sha256": checksum})


def _synced_sums(folder: Path, name: str) -> dict[str, str]:
    """sha256 of each file in `folder`, keyed by its path under `name`; also syncs the files, which
    other libraries wrote.
    """
    sums = {}
    sync_folder(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            place = f"{name}/{path.relative_to(folder)}"
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256")
                os.fsync(stream.fileno())
            sums[place] = digest.hexdigest()
    return sums
