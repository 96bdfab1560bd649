"""A run's checkpoints: one folder each, which appears when complete and holds its checksum."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from twcli.errors import UserError, first_difference
from twcli.storage.durable import replacing, write_durably

if TYPE_CHECKING:
    import torch

DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


class Checkpoints:
    """The folder that holds a run's checkpoints.

    Attributes:
        path: holds one folder a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, step: int, tensors: dict[str, torch.Tensor], keep: int, **content: Any) -> None:
        """Saves a checkpoint; then removes all but the newest `keep`.

        Args:
            tensors: by name, each of its own shape.
            content: JSON-ready values, `provenance` among them; `newest_content` returns them.
        """
        with replacing(self.path / f"step-{step:08d}") as staged:
            data = as_bytes(tensors)
            write_durably(staged / "state.safetensors", data)
            write_durably(
                staged / "checkpoint.json",
                _sealed({"step": step, "state_sha256": sha256(data), **content}),
            )
        for old in self._folders()[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(
        self, provenance: dict[str, Any], retired: Container[str] = ()
    ) -> tuple[int, dict[str, torch.Tensor], list[str]]:
        """(step, tensors, notes): the newest undamaged checkpoint; step 0 and no tensors if there
        is none.

        Args:
            retired: settings of earlier versions, which may be in the checkpoint and not in
                `provenance`.

        Raises:
            UserError: it was made from something other than `provenance`; the first
                field that differs is named.
        """
        notes = []
        for folder in reversed(self._folders()):
            try:
                content, tensors = _load(folder)
            except DAMAGED as error:
                notes.append(f"{folder}: damaged ({error}); skipped")
                continue
            made = content["provenance"]
            if "settings" in made:
                settings = {k: v for k, v in made["settings"].items() if k not in retired}
                made = {**made, "settings": settings}
            if different := first_difference(made, json.loads(json.dumps(provenance))):
                name, stored, wanted = different
                raise UserError(
                    f"{folder}: made with another {name}: the checkpoint has {stored}, "
                    f"this call has {wanted}; give another --out, or --overwrite to start over"
                )
            return content["step"], tensors, notes
        return 0, {}, notes

    def newest_content(self) -> dict[str, Any]:
        """The metadata of the newest checkpoint whose metadata is intact, without its tensors;
        empty if there is none.
        """
        for folder in reversed(self._folders()):
            with suppress(*DAMAGED):
                return _content(folder)
        return {}

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which are damaged, and unfinished ones."""
        for folder in self._folders():
            if folder.name > f"step-{step:08d}":
                shutil.rmtree(folder)
        for unfinished in self.path.glob(".step-*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    @property
    def last(self) -> Path | None:
        """The newest checkpoint's folder, by its step, intact or not; None if there is none."""
        return next(reversed(self._folders()), None)

    def problems(self) -> list[str]:
        """One line for each damaged checkpoint; reads all of them."""
        problems = []
        for folder in self._folders():
            try:
                _load(folder)
            except DAMAGED as error:
                problems.append(f"{folder}: damaged ({error})")
        return problems

    def _folders(self) -> list[Path]:
        """Folders of the checkpoints, the oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(self.path.glob("step-*"))


def _load(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(content, tensors) of a checkpoint's folder.

    Raises:
        ValueError: a checksum differs.
    """
    from safetensors.torch import load  # imports torch, which takes seconds

    content = _content(folder)
    data = (folder / "state.safetensors").read_bytes()
    if sha256(data) != content["state_sha256"]:
        raise ValueError("checksum differs")
    return content, load(data)


def _content(folder: Path) -> dict[str, Any]:
    """What a checkpoint was made from, and at which step.

    Raises:
        ValueError: it is not what was written.
    """
    file = folder / "checkpoint.json"
    stored = json.loads(file.read_bytes())
    content: dict[str, Any] = stored["content"]
    intact = sha256(json_line(content)) == stored["sha256"]
    if not intact or folder.name != f"step-{content['step']:08d}":
        raise ValueError("its checkpoint.json has changed")
    return content


def _sealed(content: dict[str, Any]) -> bytes:
    """JSON with its own checksum."""
    return json_line({"content": content, "sha256": sha256(json_line(content))})


def as_bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    """The tensors as the bytes of a safetensors file."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def json_line(value: Any) -> bytes:
    """One line of JSON with its newline, in UTF-8.

    Raises:
        ValueError: a number is not finite, which JSON has no word for.
    """
    return json.dumps(value, allow_nan=False).encode() + b"\n"
