"""The files of a model's folder, asked before transformers loads them: it says of a broken one what
its reader stumbled on, and not which file that was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from twcli.errors import UserError

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
# JSON that is read where it is there
SETTINGS = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    INDEX,
)
LFS = b"version https://git-lfs"
AGAIN = "copy it again"


def check_settings(folder: Path) -> None:
    """Raises UserError that names a file of settings which cannot be read, or which describes a
    model that is no decoder of text.
    """
    for name in SETTINGS:
        if (folder / name).is_file():
            found = _json(folder / name)
            if name == CONFIG:
                _check_config(found, folder / name)
    template = folder / "chat_template.jinja"
    if template.is_file():
        try:
            template.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{template}: byte {error.start + 1} is not UTF-8; save it as UTF-8"
            ) from error


def check_weights(folder: Path) -> None:
    """Raises UserError that names a file of weights which is missing or cannot be read."""
    files = _weights_that_are_read(folder)
    for file in files:
        _check_is_no_pointer(file)
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: is cut off or damaged ({' '.join(str(error).split())[:80]}); {AGAIN}"
            ) from error


def _weights_that_are_read(folder: Path) -> list[Path]:
    """The files that transformers takes: the one, or those that the index names. Others, such as a
    second form of the same weights, do not matter.
    """
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        files = [folder / name for name in set(_json(index).get("weight_map", {}).values())]
        if missing := sorted(file for file in files if not file.is_file()):
            raise UserError(
                f"{missing[0]}: is not there, and {INDEX} names it; copy it there, or download "
                "the model again"
            )
        return sorted(files)
    parts = sorted(folder.glob("model-*.safetensors"))
    if parts:
        raise UserError(
            f"{folder}: holds {len(parts)} files of weights and no {INDEX}, which says what is in "
            "which; copy it there"
        )
    return []


def unknown_setting(folder: Path, error: BaseException) -> str | None:
    """A setting of config.json whose value transformers does not know, by a KeyError; None where it
    does not say so.
    """
    if not isinstance(error, KeyError) or not error.args:
        return None
    for name, value in _settings(_json(folder / CONFIG)):
        if value == error.args[0] and isinstance(value, str):
            return f"its {CONFIG} has {name} {json.dumps(value)}, which transformers does not know"
    return None


def _settings(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _json(file: Path) -> dict[str, Any]:
    """The object in a file; raises UserError where it holds none."""
    _check_is_no_pointer(file)
    try:
        found = json.loads(file.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start + 1} is not UTF-8; save it as UTF-8") from error
    except ValueError as error:
        mark = file.read_bytes().startswith(b"\xef\xbb\xbf")
        then = "save it as UTF-8 without a byte order mark" if mark else AGAIN
        line = getattr(error, "lineno", 1)
        raise UserError(f"{file}:{line}: not valid JSON; {then}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: must hold one JSON object, found {type(found).__name__}; {AGAIN}")
    return found


def _check_config(found: dict[str, Any], file: Path) -> None:
    """Raises UserError for a model that is no decoder of text, or has no layers."""
    if found.get("is_encoder_decoder"):
        raise UserError(
            f"{file}: a {found.get('model_type')} model has an encoder and a decoder; --model "
            "takes a decoder of text, a causal language model"
        )
    if found.get("num_hidden_layers") == 0:
        raise UserError(f"{file}: num_hidden_layers is 0; give a model with layers")


def _check_is_no_pointer(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(LFS)) == LFS:
            raise UserError(
                f"{file}: is a pointer of Git LFS, which stands for the file; fetch it with "
                "`git lfs pull`"
            )
