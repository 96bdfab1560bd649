"""UpSkill's arithmetic toy: what latents found in a model's own right answers do for pass@5.

    python benchmarks/upskill.py --out build/upskill --table docs/upskill.md [--seeds S ...]

For each seed, as in the publication (arXiv 2602.22296): a transformer of 2 layers and 128 channels
learns 100 steps of 32 problems; this is the frozen model. What follows there is 2,000 updates of
GRPO, each with 32 problems and 5 completions. Here the frozen model is drawn once, the verifier
that is the reward there keeps the right completions, and `twcli` finds five latents in them and
trains for as many updates of about as many completions. A control is trained on the same
completions without latents. A quarter of the problems,
those of the same three numbers together, are kept out of all but the 100 steps. What was finished
is kept: an interrupted call resumes. The figures of the tables are written beside the page, as
JSON.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.passk import call, made, over_seeds
from examples.fitting import endless_batches, nll_sum
from examples.small_llama import make_tokenizer, save
from examples.tasks.triples import OPERATORS, answers, judge, sample_prompt
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.evaluation.sampling import pass_at_k
from twcli.models.loading import load_frozen

LAYERS, HEADS, HIDDEN, POSITIONS = 2, 4, 128, 64  # published
WARMUP, BATCH, LR = 100, 32, 5e-4  # published
UPDATES, UPDATED = 2000, 160  # published: 32 problems, 5 completions each
TEMPERATURE = 0.9  # published
LATENTS = 5  # published
KEPT_OUT = 4  # one in so many problems
DRAWN = 256  # completions a problem; all of them are a quarter of those of the publication
SAMPLES = 5
COMPARED = 20  # completions a problem of the control
JUDGE = "examples.tasks.triples:judge"
PARTS = {"trained": "problems of training", "kept_out": "problems kept out"}
PUBLISHED = (
    ("frozen model (200 problems)", 0.313, 0.665),
    ("GRPO without the reward for z", 0.735, 0.737),
    ("GRPO with it: UpSkill", 0.369, 0.847),
)


def problems(seed: int) -> tuple[list[str], list[str]]:
    """(problems to train on, problems kept out), all that there are."""
    rng = random.Random(0)
    every = sorted({sample_prompt(rng) for _ in range(50_000)})
    kinds = sorted({"".join(sorted(x)) for x in every})
    random.Random(seed).shuffle(kinds)
    out = set(kinds[: len(kinds) // KEPT_OUT])
    return (
        [x for x in every if "".join(sorted(x)) not in out],
        [x for x in every if "".join(sorted(x)) in out],
    )


def frozen_model(out: Path, seed: int) -> None:
    """The published warm-up: the first right answer of each problem, drawn as published."""
    rng = random.Random(seed)
    examples = []
    for _ in range(WARMUP * BATCH):
        x = sample_prompt(rng)
        examples.append(Example(x, answers(x)[0]))
    digits = Example(" ".join(map(str, range(10))), " ".join(OPERATORS))
    encoder = ExampleEncoder(make_tokenizer([*examples, digits]), "warm-up")
    encoder.tokenizer.model_max_length = POSITIONS
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(encoder.tokenizer),
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=HIDDEN,
            n_positions=POSITIONS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=encoder.bos,
            eos_token_id=encoder.eos,
            pad_token_id=encoder.pad,
        )
    )
    encoded = encoder.encode(examples, max_length=POSITIONS, source="warm-up")
    batches = [np.arange(first, first + BATCH) for first in range(0, len(encoded), BATCH)]
    fit(model, encoder, encoded, batches)
    save(model, encoder, out)


def fit(
    model: GPT2LMHeadModel, encoder: ExampleEncoder, encoded: Encoded, batches: list[np.ndarray]
) -> None:
    """AdamW at the published rate, gradients clipped at 1."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for rows in batches:
        loss = nll_sum(model, encoded, rows, encoder.pad) / len(rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def without_latents(folder: Path, seed: int) -> None:
    """The control: the frozen model trained on its right answers."""
    model, encoder = load_frozen(str(folder / "frozen"))
    with (folder / "right.jsonl").open() as lines:
        examples = [Example(**json.loads(line)) for line in lines]
    encoded = encoder.encode(examples, max_length=POSITIONS, source="right.jsonl")
    endless = endless_batches(encoded.lengths, np.arange(len(encoded)), UPDATED, seed)
    fit(model, encoder, encoded, [next(endless) for _ in range(UPDATES)])
    save(model, encoder, folder / "control")


def drawn(folder: Path, model: str, part: str, count: int, seed: int) -> Path:
    """Completions of a part's problems by a model, `count` each."""
    out = folder / f"{model}.{part}.jsonl"
    if not out.exists():
        how = ("-n", count, "--temperature", TEMPERATURE, "--seed", seed, "--max-new-tokens", 8)
        data = ("--data", folder / f"{part}.jsonl", "--out", out)
        call(folder, "-m", "twcli", "sample", "--model", folder / model, *data, *how)
    return out


def passed(path: Path, xs: list[str], count: int) -> list[float]:
    """pass@k for k of 1 to `SAMPLES` of `count` completions a problem; one that is empty is not in
    the file.
    """
    right: Counter[str] = Counter()
    with path.open() as lines:
        for record in map(json.loads, lines):
            right[record["x"]] += bool(judge(record["x"], record["y"])[1])
    hits = np.asarray([right[x] for x in xs])
    return [float(pass_at_k(count, hits, k).mean()) for k in range(1, SAMPLES + 1)]


def run_seed(folder: Path, seed: int) -> None:
    """Makes what is missing.

    Raises:
        subprocess.CalledProcessError: a command failed; its output is in `log`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, xs in zip(PARTS, problems(seed), strict=True):
        lines = [json.dumps({"x": x, "y": answers(x)[0]}) + "\n" for x in xs]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    frozen, right, names = folder / "frozen", folder / "right.jsonl", folder / "names.jsonl"
    if not (frozen / "config.json").exists():
        frozen_model(frozen, seed)
    if not right.exists():
        with drawn(folder, "frozen", "trained", DRAWN, seed).open() as lines:
            records = [json.loads(line) for line in lines]
        kept = [json.dumps(r) + "\n" for r in records if judge(r["x"], r["y"])[1]]
        right.write_text("".join(kept))
    shared = ("--model", frozen, "--data", right)
    if not names.exists():
        how = ("--latents", LATENTS, "--seed", seed)
        call(folder, "-m", "twcli", "discover", *shared, *how, "--out", names)
    run = folder / "run"
    trained = ("--baseline", folder / "names.bt.h5", "--names", names, "--seed", seed)
    call(folder, "-m", "twcli", "train", *shared, *trained, "--steps", UPDATES, "--out", run)
    if not (folder / "control" / "config.json").exists():
        without_latents(folder, seed)
    for name in PARTS:
        drawn(folder, "control", name, COMPARED, seed)
        result = folder / f"{name}.json"
        if not result.exists():
            how = ("--judge", JUDGE, "--samples", SAMPLES, "--temperature", TEMPERATURE, "--json")
            data = folder / f"{name}.jsonl"
            text = call(folder, "-m", "twcli", "eval", "--run", run, "--data", data, *how)
            result.write_text(text)


def figures(folder: Path, seed: int) -> dict[str, Any]:
    """Of a finished seed: for each part pass@k by arm, and the difference at k of 5 in points with
    its interval; how many right completions of each operator each latent is named for.
    """
    parts = {}
    for name, xs in zip(PARTS, problems(seed), strict=True):
        found = json.loads((folder / f"{name}.json").read_text())["sampling"]
        gained = found["difference"]["even"]
        low, high = gained["pass_at_k_ci"][-1]
        parts[name] = {
            "temperature": found["arms"]["frozen"]["temperature"],
            "k": found["k"],
            "frozen": found["arms"]["frozen"]["pass_at_k"],
            "even": found["arms"]["even"]["pass_at_k"],
            "control": passed(folder / f"control.{name}.jsonl", xs, COMPARED),
            "gain": [100 * value for value in (gained["pass_at_k"][-1], low, high)],
        }
    with (folder / "right.jsonl").open() as right, (folder / "names.jsonl").open() as names:
        pairs = Counter(
            (json.loads(name)["latent"], json.loads(line)["y"].split()[1])
            for line, name in zip(right, names, strict=True)
        )
    named = [{op: pairs[latent, op] for op in OPERATORS} for latent in range(LATENTS)]
    when = made(folder / f"{next(iter(PARTS))}.json")
    return {"seed": seed, "made": when, "parts": parts, "named": named}


def figures_of(out: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """`figures` of these seeds."""
    return [figures(out / f"{seed}", seed) for seed in seeds]


def tables(results: list[dict[str, Any]]) -> str:
    """Markdown, from `figures_of`."""
    when = " and ".join(sorted({result["made"] for result in results}))
    lines = [f"`make upskill`, {when}.\n", "### pass@1 and pass@5\n"]
    for part, title in PARTS.items():
        lines += [
            f"**{title[0].upper()}{title[1:]}**\n",
            "| seed | frozen model, best temperature | without latents | five latents, one "
            "completion each | points of pass@5 over the frozen model (95 % interval) |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for result in results:
            found = result["parts"][part]
            ends = [found["k"].index(1), found["k"].index(SAMPLES)]
            cells = [
                f"{found['frozen'][ends[0]]:.3f}, {found['frozen'][ends[1]]:.3f} "
                f"({found['temperature']:g})",
                f"{found['control'][0]:.3f}, {found['control'][-1]:.3f}",
                f"{found['even'][ends[0]]:.3f}, {found['even'][ends[1]]:.3f}",
                "{:.1f} ({:.1f} to {:.1f})".format(*found["gain"]),
            ]
            lines.append(f"| {result['seed']} | {' | '.join(cells)} |")
        lines.append("")
    published = "[UpSkill](https://arxiv.org/abs/2602.22296)"
    lines += [f"**Published ({published}), one seed, 300 problems drawn again**\n"]
    lines += ["| | pass@1 | pass@5 |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {one:.3f} | {five:.3f} |" for name, one, five in PUBLISHED]
    lines += [
        "",
        "### What the latents are, before training\n",
        f"| seed, latent | right completions | {' | '.join(f'`{op}`' for op in OPERATORS)} |",
        f"| --- |{' ---: |' * (1 + len(OPERATORS))}",
    ]
    for result in results:
        for latent, named in enumerate(result["named"]):
            counts = [named[op] for op in OPERATORS]
            shares = [f"{count / max(1, sum(counts)):.2f}" for count in counts]
            row = f"{result['seed']}, z{latent} | {sum(counts):,}"
            lines.append(f"| {row} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    over_seeds("upskill", __doc__, run_seed, figures_of, tables, Path("docs/upskill.md"), argv)


if __name__ == "__main__":
    main()
