"""Device, precision, seed and processes: how a command meets the machine.

`torch` and `transformers` are imported here and below, never by the command line's help.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from twcli.data.frame import read_frame
from twcli.data.template import SECTION_TAGS, Template, add_tags
from twcli.errors import UserError, first_line

MOST_WORKERS = 8  # what Python does between two operations cannot run at once
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: a device was named that this machine does not have.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
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
    return Accelerator(
        cpu=picked.type == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[unused],
    )


def repeat_exactly(device: torch.device) -> None:
    """Has a GPU add up in one order, so that the same seed gives the same numbers;
    elsewhere it does so anyway.
    """
    if device.type == "cuda":
        # read once, before the first matrix product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
        warnings.filterwarnings("ignore", message=".*deterministic")


def leave(accelerator: Any) -> None:
    """Waits for the other processes of the job and parts from them: one that exits while
    they are connected aborts.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()


def tune_allocator(*, keep: bool) -> None:
    """Has glibc keep freed memory for the next step, or else give large pieces back at once;
    without effect elsewhere.

    The buffers of a step are freed and asked for again, and the page faults of that can take a
    quarter of a small step's time on a CPU. Memory that is kept becomes fragmented, though: where
    it is to stay small it must go back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25 if keep else 2**17)
        mallopt(M_TRIM_THRESHOLD, 2**30 if keep else 2**17)


def most_at_once(device: torch.device) -> int:
    """How many passes `core_by_core` makes at once."""
    return min(torch.get_num_threads(), MOST_WORKERS) if device.type == "cpu" else 1


def core_by_core(
    call: Callable[[Any], Any], items: Sequence[Any], device: torch.device, *, alone: bool = False
) -> Iterator[Any]:
    """`call` of each item, in order. On a CPU several run at once, each on a core of its own
    where there are not too many.

    Threads that compute different items need not wait for one another after every operation. Where
    there is an item and a core for each, results do not depend on how many there are.

    Args:
        alone: one after another, for what may not run beside itself.
    """
    threads = torch.get_num_threads()
    workers = 1 if alone else min(most_at_once(device), len(items))
    if workers <= 1:
        yield from map(call, items)
        return
    torch.set_num_threads(threads // workers)
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(call, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def is_main_process() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first that
    `accelerate launch` started.
    """
    return int(os.environ.get("RANK", "0")) == 0


def quiet_transformers() -> None:
    """Keeps the library's own bars and advice off the terminal: `cli` is
    the only place that prints.
    """
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def versions() -> dict[str, str]:
    """Of this package and of those that the figures depend on."""
    names = {
        "twcli": "twcli-cvae",
        "torch": "torch",
        "transformers": "transformers",
        "peft": "peft",
    }
    found = {}
    for name, distribution in names.items():
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(distribution)
    return found


def load_template(source: str, latent_tokens: int = 1, template: str = "tags") -> Template:
    """The tokenizer at `source`, ready to encode, with the tags added that it lacks.

    Args:
        latent_tokens: tokens P that spell a latent.
        template: what `--template` takes.

    Raises:
        UserError: no tokenizer there, or the template does not go with it.
    """
    place, settings = _placed(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **settings)
    except Exception as error:
        # transformers raises OSError, ValueError, KeyError and others for the same mistake
        raise UserError(f"{source}: no usable tokenizer: {first_line(error)}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"{source}: the tokenizer has no tokenizer.json; save it once as a fast tokenizer"
        )
    frame = read_frame(template, tokenizer, source)
    return Template(tokenizer, source, latent_tokens, frame, add_tags(tokenizer, frame))


def load_model(source: str, *, precision: str = "fp32", attention: str = "sdpa") -> PreTrainedModel:
    """A causal language model in eval mode, from safetensors or a GGUF file only;
    GGUF weights are dequantised.

    Raises:
        UserError: no model there, weights that are a pickle, or an attention backend that it lacks.
    """
    place, settings = _placed(source)
    folder = Path(place)
    if folder.is_dir() and not settings and not any(folder.glob("*.safetensors")):
        found = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
        raise UserError(
            f"{source}: holds no .safetensors weights"
            + (f" ({found[0]} is a pickle and is not loaded)" if found else "")
        )
    try:
        if settings:
            with redirect_stderr(io.StringIO()):  # its bar cannot be turned off
                model = AutoModelForCausalLM.from_pretrained(
                    place,
                    dtype=DTYPES[precision],
                    attn_implementation=attention,
                    trust_remote_code=False,
                    **settings,
                )
            if quantizer := getattr(model, "hf_quantizer", None):
                # the weights are plain now, and are to be saved as such
                quantizer.remove_quantization_config(model)
        else:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=DTYPES[precision],
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except Exception as error:  # as above
        if "attention implementation" in str(error) and attention != "eager":
            raise UserError(
                f"{source}: the model lacks --attention {attention}; try --attention eager"
            ) from error
        raise UserError(
            f"{source}: cannot be loaded as a causal language model: {first_line(error)}"
        ) from error
    return model.eval()


def load_frozen(
    source: str,
    *,
    precision: str = "fp32",
    attention: str = "sdpa",
    template: str = "tags",
    latent_tokens: int = 1,
) -> tuple[PreTrainedModel, Template]:
    """The model as b_t is of it, and its template: rows for the tags that the tokenizer lacked,
    none for the latent section.

    Raises:
        UserError: as `load_template`, `load_model` and `fit_vocabulary`.
    """
    read = load_template(source, latent_tokens, template)
    model = load_model(source, precision=precision, attention=attention)
    fit_vocabulary(model, read)
    return model, read


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Computes activations again in the backward pass instead of keeping them; the
    name of the call has changed.
    """
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})


def context_length(model: PreTrainedModel, asked: int | None) -> int:
    """Longest sequence in tokens: what the model was built for, or less where
    `--max-length` asks for less.

    Raises:
        UserError: more was asked than the model's positions hold.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if asked is not None and limit is not None and asked > limit:
        raise UserError(f"--max-length {asked}: the model's context holds {limit} tokens")
    return asked or limit or 2**20


def fit_vocabulary(model: PreTrainedModel, template: Template, *, section: bool = False) -> None:
    """Gives the tags that were added to the tokenizer rows of the model: the mean of
    the tokens that spell them.

    Args:
        section: those of `<z>` and `</z>`, else all others. The frozen model goes without the
            former: every row takes part in its softmax, and the z-free sequence holds neither.

    Raises:
        UserError: tokenizer and model do not belong together.
    """
    rows, vocabulary = model.get_input_embeddings().num_embeddings, template.tokenizer.get_vocab()
    largest = max(id for tag, id in vocabulary.items() if tag not in template.added)
    if largest >= rows:
        raise UserError(
            f"{template.source}: the tokenizer's largest id is {largest}, the model has {rows} "
            "embeddings; they do not belong together"
        )
    tags = [tag for tag in template.added if (tag in SECTION_TAGS) == section]
    needed = max((vocabulary[tag] + 1 for tag in tags), default=0)
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    with torch.no_grad():
        # In float64, so that the weights' hash does not depend on how this machine adds.
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            for tag in tags:
                layer.weight[vocabulary[tag]] = (
                    layer.weight[template.spelling(tag)].double().mean(0).to(layer.weight.dtype)
                )


def _placed(source: str) -> tuple[str, dict[str, str]]:
    """Where transformers finds a model, and what it must be told besides; a `.gguf` file
    lies in a folder by its name.

    Raises:
        UserError: no such folder or file, or `gguf` is missing.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{source}: no such file")
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"{source}: GGUF files need: pip install 'twcli-cvae[gguf]'")
        return str(path.parent), {"gguf_file": path.name}
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.exists()
    if looks_local and not path.is_dir():
        raise UserError(
            f"{source}: no such model folder; --model takes a Hugging Face folder, "
            "a .gguf file or a hub name"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"{source}: holds no config.json; --model takes a Hugging Face folder, "
            "a .gguf file or a hub name"
        )
    return source, {}
