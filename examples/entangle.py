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
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C is no traceback, also while torch is imported
    signal.signal(signal.SIGINT, signal.SIG_DFL)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.fitting import fit, nats_per_example
from examples.flags import Parser, checked
from examples.mixture import entropy_floor, split_by_prompt
from examples.small_llama import HEADS, make_model, make_tokenizer, save
from twcli.data.dataset import read_examples
from twcli.data.encoder import ExampleEncoder
from twcli.errors import UserError
from twcli.models.runtime import quiet_transformers


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
    model = make_model(
        encoder,
        int(encoded.lengths.max()),
        layers=settings.layers,
        hidden=settings.hidden,
        seed=settings.seed,
    )
    # before the minutes of training: a wrong --out shows at once
    out.mkdir(parents=True, exist_ok=True)
    say(
        f"{len(train)} records to train on, {len(held)} held out, "
        f"{len(encoder.tokenizer)} tokens in the vocabulary, {model.num_parameters():,} parameters"
    )
    fit(
        model,
        encoded,
        train,
        encoder.pad,
        say,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        seed=settings.seed,
    )
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


if __name__ == "__main__":
    main()
