"""Trains a small causal LM from scratch on a mixture of strategies: the
entangled model for `twcli train`.

    python examples/entangle.py --data train.jsonl --out entangled

The data is JSONL with the fields x and y, texts of space-separated tokens, and optionally
strategy, which is read for the report only. The model learns `<bos> <x> x </x> <y> y </y>
<eos>`, with loss from y on. The folder written is plain Hugging Face: a Llama, a word-level
tokenizer and generation settings.

At the end it reports nats per example on prompts kept out of training, and the floor below which no
model can get: the entropy of the mixture.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C is no traceback, also while torch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.make_data import Parser
from examples.muon import Muon
from twcli.data.dataset import read_examples
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.data.padding import gather_padded
from twcli.data.vocabulary import TAGS
from twcli.errors import UserError
from twcli.kernels.head import head_logits
from twcli.kernels.linear import fast_linear
from twcli.models.forward import hidden_states
from twcli.models.runtime import quiet_transformers

HELD_OUT = 0.05  # share of the prompts
# padded tokens in one forward pass; a batch of long lines goes through in several
FORWARD_TOKENS = 2**15
GROUP = 32  # batches within which rows are sorted by length, so that little is spent on padding
CLIP = 1.0
WARMUP = 0.05  # share of the steps
WEIGHT_DECAY = 0.01
HEADS = 4


@dataclass(frozen=True)
class Settings:
    """What is trained and how; the defaults suit the tasks beside this file."""

    steps: int = 5000
    layers: int = 3
    hidden: int = 64
    batch: int = 64
    lr: float = 0.01
    seed: int = 0


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="entangle.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="F.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    for field in fields(Settings):
        parser.add_argument(
            f"--{field.name}",
            type=CHECKS[field.name],
            default=field.default,
            metavar=field.name[0].upper(),
            help=f"default {field.default}",
        )
    arguments = vars(parser.parse_args(argv))
    data, out = arguments.pop("data"), arguments.pop("out")
    quiet_transformers()
    try:
        entangle(data, out, Settings(**arguments), partial(print, file=sys.stderr, flush=True))
    except UserError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{out}: cannot be written: {error.strerror}")


def checked(kind: type, holds: Callable[[float], bool], wish: str) -> Callable[[str], float]:
    """A reader of one flag's number."""

    def read(text: str) -> float:
        number = kind(text)
        if not holds(number):
            raise argparse.ArgumentTypeError(f"{text} is not {wish}")
        return number

    read.__name__ = kind.__name__  # argparse names it when the text is no number
    return read


COUNT = checked(int, lambda number: number > 0, "above 0")
CHECKS: dict[str, Callable[[str], float]] = {
    "steps": COUNT,
    "layers": COUNT,
    "batch": COUNT,
    # Rotary positions turn a head's channels in pairs.
    "hidden": checked(int, lambda n: n > 0 and n % (2 * HEADS) == 0, f"a multiple of {2 * HEADS}"),
    "lr": checked(float, lambda number: 0 < number < math.inf, "a finite number above 0"),
    "seed": checked(int, lambda number: 0 <= number < 2**63, "between 0 and 2**63 - 1"),
}


def entangle(
    data: str, out: Path, settings: Settings, say: Callable[[str], None]
) -> dict[str, float | None]:
    """Trains and saves the model; returns the report's figures."""
    examples = read_examples(data, strategy_field="strategy")
    encoder = ExampleEncoder(make_tokenizer(examples), data)
    encoded = encoder.encode(examples, max_length=sys.maxsize, source=data)
    train, held = split_by_prompt(encoded.prompt_index, settings.seed)
    model = make_model(encoder, settings, longest=int(encoded.lengths.max()))
    # before the minutes of training: a wrong --out shows at once
    out.mkdir(parents=True, exist_ok=True)
    say(
        f"{len(train)} records to train on, {len(held)} held out, "
        f"{len(encoder.tokenizer)} tokens in the vocabulary, {model.num_parameters():,} parameters"
    )
    fit(model, encoded, train, settings, encoder.pad, say)
    nats = nats_per_example(model, encoded, held if len(held) else train, encoder.pad)
    floor, how = entropy_floor(examples, encoded)
    say(
        f"{'held-out' if len(held) else 'training'} loss {nats:.4f} nats per example; floor "
        + (f"{floor:.4f}: " if floor is not None else "unknown: ")
        + how
    )
    save(model, encoder, out)
    say(f"{out}: saved")
    return {"nats": nats, "floor": floor}


def make_tokenizer(examples: Sequence[Example]) -> PreTrainedTokenizerFast:
    """Every word of the data is one token; what lies between words is a single space."""
    specials = ["<pad>", "<bos>", "<eos>", "<unk>", *TAGS]
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 - 1, min_frequency=0, special_tokens=specials, show_progress=False
    )
    backend.train_from_iterator((text for e in examples for text in (e.x, e.y)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(TAGS),
        clean_up_tokenization_spaces=False,
    )


def make_model(encoder: ExampleEncoder, settings: Settings, longest: int) -> LlamaForCausalLM:
    """A Llama with random weights and room for a latent and for
    completions longer than any seen.
    """
    positions = max(256, 2 * longest + 64)
    encoder.tokenizer.model_max_length = positions
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(encoder.tokenizer),
            num_hidden_layers=settings.layers,
            hidden_size=settings.hidden,
            intermediate_size=2 * settings.hidden,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=positions,
            tie_word_embeddings=False,
            bos_token_id=encoder.bos,
            eos_token_id=encoder.eos,
            pad_token_id=encoder.pad,
        )
    )


def split_by_prompt(prompts: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out; a prompt's rows stay together, a
    single prompt is trained on.
    """
    number = int(prompts.max()) + 1
    chosen = np.zeros(number, bool)
    if number > 1:
        chosen[
            np.random.default_rng(seed).permutation(number)[: max(1, round(HELD_OUT * number))]
        ] = True
    return np.flatnonzero(~chosen[prompts]), np.flatnonzero(chosen[prompts])


def fit(
    model: LlamaForCausalLM,
    encoded: Encoded,
    rows: np.ndarray,
    settings: Settings,
    pad: int,
    say: Callable[[str], None],
) -> None:
    """Warm-up, then cosine decay; the loss is the mean over a batch's supervised tokens."""
    model.train()
    optimizers = make_optimizers(model, settings.lr)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, steps=settings.steps))
        for optimizer in optimizers
    ]
    batches = endless_batches(encoded.lengths, rows, settings.batch, settings.seed)
    started, summed, counted = time.monotonic(), torch.zeros(()), 0
    bar = tqdm(total=settings.steps, unit="step", disable=not sys.stderr.isatty())
    for step in range(1, settings.steps + 1):
        batch = next(batches)
        tokens = int(encoded.target_lengths[batch].sum()) + len(batch)
        for piece in forward_pieces(encoded.lengths, batch):
            with fast_linear(model):
                loss = nll_sum(model, encoded, piece, pad)
            (loss / tokens).backward()
            summed += loss.detach()
        counted += len(batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for part in (*optimizers, *schedules):
            part.step()
        model.zero_grad()
        bar.update()
        if step % max(1, settings.steps // 20) == 0 or step == settings.steps:
            nats = summed.item() / counted
            bar.set_postfix_str(f"{nats:.3f} nats per example")
            if bar.disable:
                seconds = time.monotonic() - started
                say(f"step {step}/{settings.steps}: {nats:.4f} nats per example, {seconds:.0f} s")
            summed, counted = torch.zeros(()), 0
    bar.close()
    model.eval()


def make_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices: two thirds of the steps that AdamW
    needs. AdamW for the rest.
    """
    parameters = list(model.named_parameters())
    matrices = [p for name, p in parameters if p.ndim > 1 and ".layers." in name]
    tables = [p for name, p in parameters if p.ndim > 1 and ".layers." not in name]
    gains = [p for _, p in parameters if p.ndim == 1]
    return [
        Muon(matrices, lr=lr, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": WEIGHT_DECAY},
                {"params": gains, "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step that counts from 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def endless_batches(
    lengths: np.ndarray, rows: np.ndarray, size: int, seed: int
) -> Iterator[np.ndarray]:
    """Rows in a seeded order, each once an epoch, neighbours in length together."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(rows)
        groups = np.split(order, range(size * GROUP, len(order), size * GROUP))
        ordered = [group[np.argsort(lengths[group], kind="stable")] for group in groups]
        batches = [
            batch for group in ordered for batch in np.split(group, range(size, len(group), size))
        ]
        yield from (batches[i] for i in rng.permutation(len(batches)))


def forward_pieces(lengths: np.ndarray, batch: np.ndarray) -> list[np.ndarray]:
    """The batch in as few parts as keep each below FORWARD_TOKENS."""
    parts = math.ceil(len(batch) * int(lengths[batch].max()) / FORWARD_TOKENS)
    return np.array_split(batch, min(parts, len(batch)))


def nll_sum(model: LlamaForCausalLM, encoded: Encoded, rows: np.ndarray, pad: int) -> torch.Tensor:
    """Summed NLL of the supervised tokens; only their positions go through the head."""
    lengths, prompts = encoded.lengths[rows], encoded.prompt_lengths[rows]
    ids = gather_padded(encoded.ids, encoded.offsets[rows], lengths, pad).astype(np.int64)
    columns = np.arange(ids.shape[1])
    # <y> is at `prompts`; y begins behind it.
    supervised = (columns > prompts[:, None]) & (columns < lengths[:, None])
    row, column = map(torch.from_numpy, np.nonzero(supervised))
    ids = torch.from_numpy(ids)
    logits = head_logits(model, hidden_states(model, ids[:, :-1])[row, column - 1])
    return torch.nn.functional.cross_entropy(logits, ids[row, column], reduction="sum")


@torch.no_grad()
def nats_per_example(
    model: LlamaForCausalLM, encoded: Encoded, rows: np.ndarray, pad: int
) -> float:
    ordered = rows[np.argsort(encoded.lengths[rows], kind="stable")]
    total = sum(
        nll_sum(model, encoded, piece, pad).item()
        for start in range(0, len(ordered), 256)
        for piece in forward_pieces(encoded.lengths, ordered[start : start + 256])
    )
    return total / len(rows)


def entropy_floor(examples: Sequence[Example], encoded: Encoded) -> tuple[float | None, str]:
    """Nats of the mixture, and how they are known."""
    labels = [e.strategy for e in examples]
    if all(labels):
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(
            -(shares * np.log(shares)).sum()
        ), "entropy of the strategy labels over all records"
    agreements = agreement_rate(encoded.prompt_index, [e.y for e in examples])
    if not agreements:
        return None, "no labels, and no two completions of a prompt that agree"
    return -math.log(agreements), (
        "no labels; -log of the rate at which two completions of a prompt agree, "
        "the entropy of an even mixture and less than that of an uneven one"
    )


def agreement_rate(prompts: np.ndarray, completions: Sequence[str]) -> float | None:
    """Share of the pairs of a prompt's completions that are equal:
    unbiased however few there are.
    """
    copies = np.fromiter(
        Counter(zip(prompts.tolist(), completions, strict=True)).values(), np.int64
    )
    rows = np.bincount(prompts)
    pairs = int((rows * (rows - 1)).sum())
    return int((copies * (copies - 1)).sum()) / pairs if pairs else None


def save(model: LlamaForCausalLM, encoder: ExampleEncoder, out: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=encoder.bos,
        eos_token_id=[encoder.y_close, encoder.eos],
        pad_token_id=encoder.pad,
    )
    model.save_pretrained(out)
    encoder.tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
