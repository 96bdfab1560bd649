"""What the benchmarks measure: models, batches, the losses that are compared, rows to score, TRL's
pass over them, and the clock.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from twcli.config.train import TrainConfig
from twcli.data.batches import Batch, collate, opening
from twcli.data.encoded import Encoded
from twcli.kernels.packing import AUTO, PLAIN, linear_weights
from twcli.models import baseline, forward
from twcli.models.latents import LatentModel
from twcli.models.new_rows import add_latent_rows
from twcli.training import loss
from twcli.training.objective import step_loss

# P of the prompt, K latents, S of y
SHAPES = [(16, 4, 48), (64, 8, 64), (512, 8, 32), (128, 8, 256), (32, 16, 128)]
BETA = 0.1
RESERVED = 16  # ids below are tags
TEMPLATE = SimpleNamespace(
    pad=0, z_open=8, z_close=9, latent_tokens=1, latent_section=3, section_shift=0
)


@dataclass
class Row:
    """One figure; `bar` is what it must reach from the side that `sign` names, None where
    there is nothing to reach.
    """

    name: str
    figure: float | None
    bar: float | None = None
    sign: str = ">="
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.bar is None or self.figure is None:
            return None if self.bar is None else False
        return self.figure >= self.bar if self.sign == ">=" else self.figure <= self.bar


def llama(
    *,
    hidden: int = 256,
    layers: int = 10,
    heads: int = 8,
    key_heads: int = 8,
    inner: int = 704,
    vocabulary: int = 8192,
) -> LlamaForCausalLM:
    """10 M parameters by default."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).eval()


def smollm2() -> LlamaForCausalLM:
    return llama(hidden=576, layers=30, heads=9, key_heads=3, inner=1536, vocabulary=49152)


@dataclass(frozen=True)
class Seconds:
    """Of this process on all cores, and on the clock."""

    processor: float
    wall: float

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.process_time(), time.perf_counter())

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.processor - other.processor, self.wall - other.wall)


def timed(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Seconds]:
    """Medians of each, by turns; a call that returns `Seconds` of its own has taken those."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, call in work.items():
            start = Seconds.now()
            own = call()
            if turn:
                seconds[name].append(own if isinstance(own, Seconds) else Seconds.now() - start)
    return {
        name: Seconds(median(s.processor for s in taken), median(s.wall for s in taken))
        for name, taken in seconds.items()
    }


def batch_of(P: int, S: int, rows: int, vocabulary: int) -> Batch:
    """`rows` records with prompts of their own: P tokens of prompt and S supervised ones each."""
    rng = np.random.default_rng(0)
    lengths = np.full(rows, P + S + 2)  # `<y>` before and `<eos>` after what is supervised
    encoded = Encoded(
        ids=rng.integers(RESERVED, vocabulary, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_lengths=np.full(rows, P),
        target_lengths=np.full(rows, S),
        x_starts=np.zeros(rows, np.int64),
        x_lengths=np.full(rows, P),
        row_hash=np.zeros((rows, 16), np.uint8),
        prompt_index=np.arange(rows),
        unknown_rows=0,
    )
    batch = collate(np.arange(rows), encoded, TEMPLATE, None)
    weights = torch.from_numpy(rng.exponential(size=(rows, S)).astype(np.float32))
    return Batch(**{**vars(batch), "baseline_BS": weights})


def latent_model(backbone: LlamaForCausalLM, K: int) -> LatentModel:
    """With latents that differ: where all R(z) are equal, the posterior's
    gradient is nothing but rounding.
    """
    first = backbone.config.vocab_size
    ids = [[first + k] for k in range(K)]
    add_latent_rows(backbone, ids, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = LatentModel(backbone, ids, "shared")
    torch.nn.init.normal_(model.head.outer.weight, std=0.1)
    with torch.no_grad():
        backbone.get_input_embeddings().weight[first:] *= 8
    return model


def steps_of_a_shape(model: LatentModel, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
    """The losses that are compared; their gradients are what is measured."""
    return {
        "plain fine-tuning": partial(fine_tuning, model, batch),
        "K + 2 passes": partial(separate_passes, model, batch, True),
        "cached K + 1": partial(through, model, batch, PLAIN),
        "ours exact": partial(through, model, batch, AUTO),
    }


def speed_rows(
    label: str,
    P: int,
    K: int,
    S: int,
    seconds: dict[str, float],
    note: str,
    data: int | None = None,
) -> list[Row]:
    """From the seconds of `steps_of_a_shape` and of "ours default"; `data` is the batch's tokens
    where their rate is reported.
    """
    ours, plain, ideal = (
        seconds["ours exact"],
        seconds["plain fine-tuning"],
        (K + 2) * (P + S) / (P + (K + 1) * S),
    )
    found = [
        Row(
            f"{label}: times faster than K + 2 passes, share of the ideal {ideal:.2f}",
            seconds["K + 2 passes"] / ours / ideal,
            0.95,
            note=note,
        ),
        Row(f"{label}: times faster than cached K + 1", seconds["cached K + 1"] / ours, 1.0),
    ]
    for kind in ("exact", "default"):
        step = seconds[f"ours {kind}"]
        found.append(
            Row(
                f"{label}: {kind} step in plain fine-tuning steps",
                step / plain,
                note="" if data is None else f"{data / step:,.0f} tokens of data a second",
            )
        )
    return found


def total(
    nll_BKS: torch.Tensor, log_q_BK: torch.Tensor, log_p_BK: torch.Tensor, batch: Batch
) -> torch.Tensor:
    return loss.objective(log_q_BK, log_p_BK, reconstruction(nll_BKS, batch), BETA).sum()


def reconstruction(nll_BKS: torch.Tensor, batch: Batch) -> torch.Tensor:
    return loss.reconstruction(
        nll_BKS, batch.active_BS, batch.baseline_BS, uniform_weight=1.0, token_weight=2.0, tau=1e-4
    )


def whole(model: LatentModel, ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and logits of all positions."""
    hidden = model.backbone.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return hidden, model.backbone.lm_head(hidden)


def nll_of(batch: Batch, logits: torch.Tensor, first_B: torch.Tensor) -> torch.Tensor:
    """(B, S)"""
    rows, columns = (torch.arange(n, device=logits.device) for n in batch.targets_BS.shape)
    logits = logits[rows[:, None], first_B[:, None] + columns]
    return F.cross_entropy(logits.transpose(1, 2), batch.targets_BS, reduction="none")


def branch(model: LatentModel, batch: Batch, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL (B, S) under latent k, and log p(z|x), in a pass of its own."""
    rows = torch.arange(len(batch.rows_B), device=batch.rows_B.device)
    ids = batch.latent_BL.clone()
    ids[rows, batch.slot_B] = model.latent_ids_KP[k, 0]
    _, logits = whole(model, ids)
    return nll_of(batch, logits, batch.latent_first_B), logits[rows, batch.slot_B - 1][
        :, model.latent_ids_KP[:, 0]
    ].log_softmax(-1)


def posterior(model: LatentModel, batch: Batch) -> torch.Tensor:
    hidden, _ = whole(model, batch.plain_BT)
    return torch.log_softmax(model.head(hidden, batch.plain_first_B, batch.active_BS), dim=-1)


def for_b_t(model: LatentModel, batch: Batch) -> torch.Tensor:
    """Zero, with a gradient: the pass that the cache saves."""
    return 0.0 * nll_of(batch, whole(model, batch.plain_BT)[1], batch.plain_first_B).sum()


def separate_passes(model: LatentModel, batch: Batch, extra: bool) -> torch.Tensor:
    """K + 1 passes one by one, all positions through the head; with
    `extra` the one more for b_t.
    """
    branches = [branch(model, batch, k) for k in range(model.latents)]
    log_q = posterior(model, batch)
    value = total(torch.stack([nll for nll, _ in branches], 1), log_q, branches[0][1], batch)
    return value + for_b_t(model, batch) if extra else value


def one_after_another(model: LatentModel, batch: Batch) -> None:
    """The gradient of `separate_passes`, a backward pass after each of the K + 2:
    activations of one pass in memory.
    """
    log_q = posterior(model, batch)
    q, reff = log_q.exp().detach(), []
    for k in range(model.latents):
        nll, log_p = branch(model, batch, k)
        reff.append(reconstruction(nll[:, None], batch)[:, 0])
        value = (q[:, k] * reff[-1]).sum()
        if k == 0:
            value, router = value - BETA * (q * log_p).sum(), log_p.detach()
        value.backward()
    (log_q.exp() * (torch.stack(reff, 1).detach() + BETA * (log_q - router))).sum().backward()
    for_b_t(model, batch).backward()


def through(model: LatentModel, batch: Batch, execution: str) -> torch.Tensor:
    model.execution = execution
    output = model(batch)
    return total(output.nll_BCS, output.log_posterior_BK, output.log_router_BK, batch)


def default_recipe(model: LatentModel, batch: Batch) -> None:
    """Gradients of two steps, `refine` and `settle`: their mean is what the default recipe
    costs after the warm start.
    """
    model.execution = AUTO
    config = TrainConfig(model="", data="", out="", baseline="-", latents=model.latents)
    with torch.no_grad():
        nll_BCS, _ = model.score_branches(opening(batch, config.prune)[0])
    latent_B = nll_BCS.sum(-1).argmin(1)
    for settles in (False, True):
        model.zero_grad()
        loss_B, _ = step_loss(
            model(batch, latent_B, with_posterior=settles), batch, config, latent_B
        )
        loss_B.sum().backward()


def fine_tuning(model: LatentModel, batch: Batch) -> torch.Tensor:
    """The usual step: one pass, all positions through the head."""
    logits = model.backbone(input_ids=batch.plain_BT, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.plain_BT[:, 1:].flatten())


def gradient(
    model: LatentModel, loss: Callable[[], torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    value = loss()
    value.backward()
    return value.item(), [p.grad for p in model.parameters() if p.grad is not None]


def apart(one: tuple[float, list[torch.Tensor]], other: tuple[float, list[torch.Tensor]]) -> float:
    """Largest relative difference of a loss and of each parameter's gradient."""
    pairs = [(a.double(), b.double()) for a, b in zip(one[1], other[1], strict=True)]
    return max(
        abs(one[0] - other[0]) / abs(other[0]),
        *(float((a - b).norm() / b.norm()) for a, b in pairs),
    )


def rows_to_score(rows: int, completions: int) -> Encoded:
    """Rows whose completions' lengths are log-normal, so many completions a prompt."""
    rng = np.random.default_rng(0)
    S = np.clip(np.exp(rng.normal(np.log(55), 0.7, rows)).astype(int), 16, 512)
    return prompts_of(
        rng, np.repeat(rng.integers(8, 25, rows // completions), completions), S, completions
    )


def prompts_of(rng: np.random.Generator, P: np.ndarray, S: np.ndarray, completions: int) -> Encoded:
    """Random rows of P tokens before `<y>` and S supervised ones, every so
    many of them with one prompt.
    """
    lengths, prompt = P + S + 2, np.arange(len(P)) // completions
    ids, offsets = (
        rng.integers(RESERVED, 8192, lengths.sum()).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    for row in range(len(P)):
        first = offsets[row - row % completions]
        ids[offsets[row] : offsets[row] + P[row]] = ids[first : first + P[row]]
    return Encoded(
        ids=ids,
        offsets=offsets,
        prompt_lengths=P,
        target_lengths=S,
        x_starts=np.zeros(len(P), np.int64),
        x_lengths=P,
        row_hash=np.zeros((len(P), 16), np.uint8),
        prompt_index=prompt,
        unknown_rows=0,
    )


def tokens_of(encoded: Encoded) -> int:
    """Tokens that must be read: a prompt counts once."""
    _, firsts = np.unique(encoded.prompt_index, return_index=True)
    return int(
        (encoded.lengths - encoded.prompt_lengths).sum() + encoded.prompt_lengths[firsts].sum()
    )


def scoring_work(model: LlamaForCausalLM, encoded: Encoded) -> int:
    """Multiply-adds with weights: of the layers on tokens that must be read, of the head
    on those that are scored.
    """
    linear = sum(w.numel() for w in linear_weights(model))
    return linear * tokens_of(encoded) + model.lm_head.weight.numel() * int(
        encoded.target_lengths.sum()
    )


def score(
    model: LlamaForCausalLM, encoded: Encoded, *, varlen: bool = True, rows: int | None = None
) -> np.ndarray:
    """b_t of the first `rows`, or of all."""
    return baseline.score_flat(
        model,
        TEMPLATE,
        encoded,
        np.arange(rows or len(encoded)),
        varlen=varlen,
        batch_tokens=forward.fast_batch_tokens(model),
    )


def trl_pass(
    model: LlamaForCausalLM, encoded: Encoded, *, batch: int = 8
) -> Callable[[], Any] | None:
    """TRL's own pass over the same rows, two completions a record as it wants them, in bf16 on a
    GPU; None where TRL is not installed.
    """
    try:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
    except ImportError:
        return None
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(8192)}, unk_token="t3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="t1", eos_token="t2", pad_token="t0", unk_token="t3"
    )

    def text(start: int, stop: int) -> str:
        return " ".join(f"t{i}" for i in encoded.ids[start:stop].tolist())

    def record(one: int, other: int) -> dict[str, str]:
        starts, prompts, ends = encoded.offsets, encoded.prompt_lengths, encoded.offsets[1:] - 1
        return {
            "prompt": text(starts[one], starts[one] + prompts[one]) + " ",
            "chosen": text(starts[one] + prompts[one], ends[one]),
            "rejected": text(starts[other] + prompts[other], ends[other]),
        }

    data = Dataset.from_list([record(row, row + 1) for row in range(0, len(encoded) - 1, 2)])
    folder = tempfile.mkdtemp()
    on_cpu = model.device.type == "cpu"
    config = DPOConfig(
        output_dir=folder,
        precompute_ref_log_probs=False,
        max_length=None,
        use_cpu=on_cpu,
        report_to=[],
        bf16=not on_cpu,
        per_device_train_batch_size=batch,
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    dpo = DPOTrainer(
        model=copy.deepcopy(model),
        ref_model=copy.deepcopy(model),
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
    )
    # names a file of results; data in memory have none, so every call computes
    dpo._precompute_model_hash = "bench"
    return partial(
        dpo._precompute_ref_logps, dpo.train_dataset, "train", config.per_device_train_batch_size
    )
