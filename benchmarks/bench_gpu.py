"""The shapes, precompute and memory of `bench.py` on a GPU in bf16; large
batches, all on the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import LlamaForCausalLM

from benchmarks.workloads import (
    SHAPES,
    Row,
    apart,
    batch_of,
    default_recipe,
    gradient,
    latent_model,
    llama,
    one_after_another,
    prompts_of,
    rows_to_score,
    score,
    scoring_work,
    separate_passes,
    smollm2,
    speed_rows,
    steps_of_a_shape,
    through,
    timed,
    tokens_of,
    trl_pass,
)
from twcli.kernels import flash
from twcli.kernels.packing import AUTO, linear_weights
from twcli.models.latents import LatentModel
from twcli.models.runtime import repeat_exactly

DEVICE, PRECISION = "cuda", torch.bfloat16
# of the matrices whose product's rate is what a model's is measured against
SIDE, PRODUCTS = 8192, 10
PAIRS = 2048, 2  # rows to score and completions a prompt
COMPARED = 512  # of those rows in float32 too
TRL_BATCHES = 8, 32  # pairs a batch, of which the faster counts


def large() -> LlamaForCausalLM:
    """1.1 B parameters."""
    return llama(hidden=2048, layers=22, heads=32, key_heads=4, inner=5632, vocabulary=32000)


# Name, model, shapes, tokens of all K + 1 sequences: what the activations of
# cached K + 1 leave memory for.
MODELS: list[tuple[str, Callable[[], LlamaForCausalLM], list[tuple[int, int, int]], int]] = [
    ("10 M Llama", llama, SHAPES, 294912),
    ("SmolLM2-135M shape", smollm2, [(64, 8, 64), (512, 8, 32)], 65536),
    ("1.1 B Llama", large, [(64, 8, 64), (512, 8, 32)], 21600),
]


def rows(repeats: int) -> Iterator[Row]:
    """None where there is no GPU."""
    if not torch.cuda.is_available():
        return
    repeat_exactly(torch.device(DEVICE))  # as `twcli train` does
    peak = rate()
    yield Row(
        "GPU: TFLOP a second of a large matrix product in bf16, which utilisation is of",
        peak / 1e12,
        note=f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
    )
    for name, make, shapes, tokens in MODELS:
        for P, K, S in shapes:
            yield from shape_rows(
                f"GPU, {name}", make, P, K, S, max(1, tokens // (K + 1) // (P + S)), repeats, peak
            )
    yield from precompute_rows(repeats, peak)
    yield from kernel_rows(repeats)
    yield from memory_rows()


def rate() -> float:
    """FLOP a second."""
    a, b = (torch.randn(SIDE, SIDE, device=DEVICE, dtype=PRECISION) for _ in range(2))
    seconds = timed({"product": lambda: waited(lambda: [a @ b for _ in range(PRODUCTS)])}, 5)[
        "product"
    ].wall
    return PRODUCTS * 2 * SIDE**3 / seconds


def waited(call: Callable[[], Any]) -> None:
    """Ends when the GPU has."""
    call()
    torch.cuda.synchronize()


def on_device(make: Callable[[], LlamaForCausalLM]) -> LlamaForCausalLM:
    with torch.device(DEVICE):
        return make()


@contextmanager
def counted(model: LatentModel) -> Iterator[dict[str, int]]:
    """Tokens that pass through the layers and positions that pass
    through the head while it lasts.
    """
    seen = {"tokens": 0, "positions": 0}

    def layers(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        seen["tokens"] += inputs["input_ids"].numel()

    def head(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        seen["positions"] += args[0].shape[:-1].numel()

    hooks = [
        model.backbone.base_model.register_forward_pre_hook(layers, with_kwargs=True),
        model.backbone.lm_head.register_forward_pre_hook(head),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def work(model: LatentModel, call: Callable[[], torch.Tensor]) -> float:
    """FLOP of matrix products with weights, forward and backward; attention and what is
    computed again are not counted.
    """
    with counted(model) as seen, torch.no_grad(), torch.autocast(DEVICE, PRECISION):
        call()
    linear = sum(w.numel() for w in linear_weights(model.backbone))
    return 6 * (linear * seen["tokens"] + model.backbone.lm_head.weight.numel() * seen["positions"])


def step(model: LatentModel, loss: Callable[[], torch.Tensor]) -> None:
    in_bf16(model, loss).backward()


def in_bf16(model: LatentModel, call: Callable[[], Any]) -> Any:
    model.zero_grad()
    with torch.autocast(DEVICE, PRECISION):
        return call()


def shape_rows(
    name: str,
    make: Callable[[], LlamaForCausalLM],
    P: int,
    K: int,
    S: int,
    records: int,
    repeats: int,
    peak: float,
) -> list[Row]:
    backbone = on_device(make)
    vocabulary = backbone.config.vocab_size
    model = latent_model(backbone, K).to(DEVICE)
    error, rounding = errors(model, batch_of(P, S, max(1, records // 8), vocabulary).to(DEVICE))
    batch = batch_of(P, S, records, vocabulary).to(DEVICE)
    calls = steps_of_a_shape(model, batch)
    flop = {label: work(model, call) for label, call in calls.items()}
    steps = {label: partial(waited, partial(step, model, call)) for label, call in calls.items()}
    steps["K + 2 passes"] = partial(
        waited, partial(in_bf16, model, partial(one_after_another, model, batch))
    )
    steps["ours default"] = partial(
        waited, partial(in_bf16, model, partial(default_recipe, model, batch))
    )
    seconds = {label: each.wall for label, each in timed(steps, repeats).items()}
    seconds["ours default"] /= 2
    columns = ", ".join(
        f"{label} {1000 * value:.1f} ms"
        + (f" ({flop[label] / value / peak:.0%})" if label in flop else "")
        for label, value in seconds.items()
    )
    label = f"{name} ({P}, {K}, {S})"
    del steps, calls, model, backbone
    torch.cuda.empty_cache()
    return [
        Row(
            f"{label}: rounding of loss and gradients in bf16, times that of separate passes",
            error,
            1.5,
            "<=",
            rounding,
        ),
        *speed_rows(
            label,
            P,
            K,
            S,
            seconds,
            f"{records} records; a step and its utilisation: {columns}",
            records * (P + S),
        ),
    ]


def errors(model: LatentModel, batch: Any) -> tuple[float, str]:
    """How much more ours in bf16 is off from K + 1 passes in float32 than those passes are in
    bf16, over all gradients.
    """

    def taken(
        call: Callable[[], torch.Tensor], dtype: torch.dtype
    ) -> tuple[float, list[torch.Tensor]]:
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            loss, gradients = gradient(model, call)
        return loss, [torch.cat([g.flatten() for g in gradients])]

    separate, ours = (
        partial(separate_passes, model, batch, False),
        partial(through, model, batch, AUTO),
    )
    exact = taken(separate, torch.float32)
    by_ours, by_them = (apart(taken(call, PRECISION), exact) for call in (ours, separate))
    return (
        by_ours / by_them,
        f"from K + 1 passes in float32 ours differ by {by_ours:.1e}, they by {by_them:.1e}",
    )


def kernel_rows(repeats: int) -> list[Row]:
    """What the kernels save beside attention over copies of the prompts under a mask."""
    found = []
    for name, make, (P, K, S), tokens in (
        ("10 M Llama", llama, (512, 8, 32), 16384),
        ("SmolLM2-135M shape", smollm2, (512, 8, 32), 6528),
    ):
        model = latent_model(on_device(make), K).to(DEVICE)
        batch = batch_of(P, S, tokens // (P + S), model.backbone.config.vocab_size - K).to(DEVICE)
        with_kernels = partial(waited, partial(step, model, partial(through, model, batch, AUTO)))

        def without(call: Callable[[], Any] = with_kernels) -> None:
            with patch.object(flash, "usable", lambda _model: False):
                call()

        def any_order(call: Callable[[], Any] = with_kernels) -> None:
            torch.use_deterministic_algorithms(False)
            call()
            repeat_exactly(torch.device(DEVICE))

        seconds = timed({"with": with_kernels, "without": without, "any order": any_order}, repeats)
        found.append(
            Row(
                f"GPU, {name} ({P}, {K}, {S}): a step that repeats exactly, "
                "in steps that add up in any order",
                seconds["with"].wall / seconds["any order"].wall,
            )
        )
        found.append(
            Row(
                f"GPU, {name} ({P}, {K}, {S}): attention in flash kernels, a step times the same "
                "over copied prompts and a mask",
                seconds["without"].wall / seconds["with"].wall,
            )
        )
    return found


def precompute_rows(repeats: int, peak: float) -> list[Row]:
    return [*small_precompute_rows(repeats, peak), *large_precompute_rows(repeats, peak)]


def small_precompute_rows(repeats: int, peak: float) -> list[Row]:
    """Rows of the 10 M Llama, beside TRL where it is installed, and how exact they are in bf16."""
    small, encoded = on_device(llama), rows_to_score(*PAIRS)
    exact = score(small, encoded, varlen=False, rows=COMPARED)
    theirs = [call for size in TRL_BATCHES if (call := trl_pass(small, encoded, batch=size))]
    small.to(PRECISION)
    error, padded_error = (
        np.abs(score(small, encoded, varlen=varlen, rows=COMPARED) - exact)
        for varlen in (True, False)
    )
    seconds = timed(
        {
            "ours": lambda: score(small, encoded),
            "padded": lambda: score(small, encoded, varlen=False),
        }
        | {f"TRL {place}": partial(waited, call) for place, call in enumerate(theirs)},
        repeats,
    )
    ours = seconds["ours"].wall
    best = min((seconds[f"TRL {place}"].wall for place in range(len(theirs))), default=None)
    rows = len(encoded)
    note = f"{rows / ours:,.0f} rows and {tokens_of(encoded) / ours:,.0f} tokens a second; "
    note += (
        "TRL is not installed"
        if best is None
        else f"TRL in bf16 {rows / best:,.0f} rows, the faster of {TRL_BATCHES} pairs a batch"
    )
    label = "GPU, precompute, 10 M Llama in bf16"
    return [
        Row(
            f"{label}: rows a second, times TRL's precompute_ref_log_probs",
            None if best is None else best / ours,
            7.0,
            note=note,
        ),
        Row(f"{label}: utilisation", 2 * scoring_work(small, encoded) / ours / peak),
        Row(
            f"{label}: rows without padding and prompts once, times the same rows padded",
            seconds["padded"].wall / ours,
        ),
        Row(
            f"{label}: mean error of b_t from float32, times that of padded rows in bf16",
            float(error.mean() / padded_error.mean()),
            1.5,
            "<=",
            f"{error.mean():.1e} and {padded_error.mean():.1e} nats a token",
        ),
    ]


def large_precompute_rows(repeats: int, peak: float) -> list[Row]:
    """Rows of larger models with four completions a prompt, beside the same rows padded."""
    found = []
    for name, make, (P, S), count in (
        ("SmolLM2-135M shape", smollm2, (64, 64), 4096),
        ("1.1 B Llama", large, (256, 64), 512),
    ):
        model = on_device(make).to(PRECISION)
        data = prompts_of(np.random.default_rng(1), np.full(count, P), np.full(count, S), 4)
        taken = {
            "ours": partial(score, model, data),
            "padded": partial(score, model, data, varlen=False),
        }
        seconds = timed(taken, repeats)
        ours = seconds["ours"].wall
        found.append(
            Row(
                f"GPU, precompute, {name}, four completions of {S} tokens a prompt of {P}: "
                "times each padded with its own",
                seconds["padded"].wall / ours,
                note=(
                    f"{count / ours:,.0f} rows and {tokens_of(data) / ours:,.0f} tokens a second, "
                    f"utilisation {2 * scoring_work(model, data) / ours / peak:.0%}"
                ),
            )
        )
    return found


def memory_rows() -> list[Row]:
    def peak(K: int) -> float:
        model = latent_model(on_device(llama), K).to(DEVICE)
        model.latent_chunk = 1
        batch = batch_of(64, 64, 128, 8192).to(DEVICE)
        step(model, partial(through, model, batch, AUTO))
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(model, partial(through, model, batch, AUTO))
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    small, large = peak(2), peak(16)
    return [
        Row(
            "GPU, --latent-chunk 1: memory of a step, K = 16 over K = 2",
            large / small,
            1.1,
            "<=",
            f"{small:.0f} and {large:.0f} MiB above the loaded model; 10 M Llama, 128 records, "
            "P = S = 64",
        )
    ]
