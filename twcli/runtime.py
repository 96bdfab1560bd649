"""Device, precision, seed and processes: how a command meets the machine.

`torch` and `transformers` are imported here and below, never by the command line's help.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from twcli.errors import UserError
from twcli.template import Template

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: a device was named that this machine does not have.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UserError(f"--device {name}: not available here; use --device cpu")
    return torch.device(name)


def accelerator_for(device: str, precision: str) -> Any:
    """An `accelerate.Accelerator` on the device; bf16 runs as autocast over float32 weights."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    picked = pick_device(device)
    # Not every step reads the posterior, so its parameters go without a gradient now and then.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=picked.type == "cpu", mixed_precision="bf16" if precision == "bf16" else "no", kwargs_handlers=[unused])


def leave(accelerator: Any) -> None:
    """Waits for the other processes of the job and parts from them: one that exits while they are connected aborts."""
    accelerator.wait_for_everyone()
    accelerator.end_training()


def is_main_process() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first that `accelerate launch` started."""
    return int(os.environ.get("RANK", "0")) == 0


def quiet_transformers() -> None:
    """Keeps the library's own bars and advice off the terminal: `cli.py` is the only place that prints."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def load_template(source: str, latent_tokens: int = 1) -> Template:
    """The tokenizer at `source`, ready to encode; `latent_tokens` is the number P of tokens that spell a latent.

    Raises:
        UserError: no tokenizer there, or it lacks the template's tags.
    """
    _check_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others for the same mistake
        raise UserError(f"{source}: no usable tokenizer: {_first_line(error)}") from error
    return Template(tokenizer, source, latent_tokens)


def load_model(source: str, *, precision: str = "fp32", attention: str = "sdpa") -> PreTrainedModel:
    """A causal language model in eval mode, from safetensors only.

    Raises:
        UserError: no model there, weights that are a pickle, or an attention backend that it lacks.
    """
    _check_folder(source)
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        found = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
        raise UserError(f"{source}: holds no .safetensors weights" + (f" ({found[0]} is a pickle and is not loaded)" if found else ""))
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=DTYPES[precision], attn_implementation=attention,
            use_safetensors=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise UserError(f"{source}: cannot be loaded as a causal language model: {_first_line(error)}") from error
    return model.eval()


def context_length(model: PreTrainedModel, asked: int | None) -> int:
    """Longest sequence in tokens: what the model was built for, or less where `--max-length` asks for less.

    Raises:
        UserError: more was asked than the model's positions hold.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if asked is not None and limit is not None and asked > limit:
        raise UserError(f"--max-length {asked}: the model's context holds {limit} tokens")
    return asked or limit or 2**20


def check_vocabulary(model: PreTrainedModel, template: Template) -> None:
    """Raises UserError where tokenizer and model do not belong together."""
    rows = model.get_input_embeddings().num_embeddings
    largest = max(template.tokenizer.get_vocab().values())
    if largest >= rows:
        raise UserError(f"{template.source}: the tokenizer's largest id is {largest}, the model has {rows} embeddings; "
                        "they do not belong together")


def _check_folder(source: str) -> None:
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()
    if looks_local and not Path(source).is_dir():
        raise UserError(f"{source}: no such model folder")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise UserError(f"{source}: holds no config.json; --model takes a Hugging Face folder or a hub name")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
