"""A checkpoint that is an adapter of peft, alone or beside its model: the model that it belongs to,
and the model with the adapter merged into its weights.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel

from twcli.errors import UserError, first_line

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder.

    Attributes:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        base: what to load the model from: `folder` itself, as transformers does where it holds a
            model too, or what the adapter names.
    """

    folder: Path
    base: str

    @property
    def beside_its_model(self) -> bool:
        """Whether the folder holds the model too."""
        return Path(self.base) == self.folder


def adapter_in(source: str) -> Adapter | None:
    """The adapter in the folder `source`; None if it is no folder, or has none.

    Raises:
        UserError: it has no weights that can be loaded, or its model is not to be found.
    """
    folder = Path(source)
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{source}: holds {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}; add the adapter's weights "
            f"as safetensors, or remove {ADAPTER_CONFIG} if the model is to be used without"
        )
    if (folder / "config.json").is_file():
        return Adapter(folder, str(folder))
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: names no model; set base_model_name_or_path to the folder "
            "or hub name of the model that the adapter belongs to"
        )
    beside = folder / base  # a path may be meant from the adapter on
    if not Path(base).exists() and beside.exists():
        base = str(beside)
    looks_local = base.startswith((".", "/", "~")) or base.count("/") > 1
    if looks_local and not Path(base).exists():
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: the adapter belongs to the model {base}, which is not "
            "there; set base_model_name_or_path to where it is"
        )
    return Adapter(folder, base)


@contextmanager
def without_adapter(adapter: Adapter) -> Iterator[str]:
    """Where the adapter's model can be loaded from by itself: transformers would add the adapter
    that lies beside it.
    """
    if not adapter.beside_its_model:
        yield adapter.base
        return
    with tempfile.TemporaryDirectory() as place:
        for path in adapter.folder.iterdir():
            if path.is_file() and not path.name.startswith("adapter_"):
                link = Path(place) / path.name
                link.symlink_to(path.resolve())
        yield place


def merge_adapter(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """The model with the adapter's update in its weights.

    Raises:
        UserError: peft is not installed, or the adapter does not fit or cannot be merged.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UserError(
            f"{adapter.folder}: an adapter needs pip install 'twcli-cvae[lora]'"
        ) from error
    rows = _embedding_rows(adapter)
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated names, and of what a merge rounds
            merged: Any = PeftModel.from_pretrained(model, str(adapter.folder)).merge_and_unload()
    except Exception as error:  # of any kind, where the adapter is of another model
        raise UserError(
            f"{adapter.folder}: the adapter cannot be merged into {adapter.base}: "
            f"{first_line(error)}; merge it with peft, save the model, and give that folder"
        ) from error
    merged.requires_grad_(True)
    return merged


def _embedding_rows(adapter: Adapter) -> int:
    """Rows of the embeddings that the adapter brings along, 0 for none: more than the model has, if
    tokens were added for it.
    """
    with safe_open(adapter.folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        shapes = [
            weights.get_slice(name).get_shape()
            for name in weights.keys()  # noqa: SIM118  # it is no dict
            if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))
        ]
    return max((shape[0] for shape in shapes), default=0)
