"""Device, precision, allocator and processes.

`torch` and `transformers` are imported from here on, never for the command line's help.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from twcli.errors import UserError

MOST_WORKERS = 8  # more would wait for Python's global lock between operations
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Say = Callable[[str], None]


def silent(_line: str) -> None:
    """Says nothing."""


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: this machine does not have the named device.
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
    # Not every step uses the posterior, so its parameters sometimes have no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        cpu=picked.type == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[unused],
    )


def repeat_exactly(device: torch.device) -> None:
    """Makes a GPU sum in a fixed order, so that the same seed gives the same numbers; other devices
    do so anyway.
    """
    if device.type == "cuda":
        # read by cuBLAS once, before the first matrix product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
        warnings.filterwarnings("ignore", message=".*deterministic")


def leave(accelerator: Any) -> None:
    """Waits for the other processes of the job and disconnects: a process that exits while
    connected aborts.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()


def tune_allocator(*, keep: bool) -> None:
    """Makes glibc keep freed memory for the next step, or else return large blocks at once; no
    effect without glibc.

    Each step frees and allocates the same buffers, and the page faults can take a quarter of a
    small step's time on a CPU. Kept memory becomes fragmented, though, so commands that must stay
    small return it.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    else:
        mallopt = None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25 if keep else 2**17)
        mallopt(M_TRIM_THRESHOLD, 2**30 if keep else 2**17)


def most_at_once(device: torch.device) -> int:
    """Number of calls that `core_by_core` runs at once."""
    if device.type != "cpu":
        return 1
    return min(torch.get_num_threads(), MOST_WORKERS)


def core_by_core(
    call: Callable[[Any], Any], items: Sequence[Any], device: torch.device, *, alone: bool = False
) -> Iterator[Any]:
    """`call(item)` for each item, in order. On a CPU several run at once, each on its own core if
    there are few enough.

    Threads with different items need not wait for one another after every operation. If every
    thread has one core, the results do not depend on their number.

    Args:
        alone: run the calls one after another, for a `call` that is not thread-safe.
    """
    threads = torch.get_num_threads()
    if alone:
        workers = 1
    else:
        workers = min(most_at_once(device), len(items))
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


def quiet_transformers() -> None:
    """Silences the library's progress bars and advice: only `cli` prints."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def versions() -> dict[str, str]:
    """Versions of this package and of those that its results depend on."""
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


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recomputes activations in the backward pass instead of storing them; the method's name
    differs between versions of transformers.
    """
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
