"""Draws what weighting with b_t is about, and what it does, from scratch: data,
entangled models, training runs.

    python benchmarks/dilution.py --out build/figures

Writes three figures and the numbers behind them:

    profile.png   where b_t lies along y in three tasks, with the boundary t0 before which nine
                  tenths of it lie
    gradient.png  the posterior's gradient against T at fixed t0: uniform, weighted, and both
                  subtractions
    training.png  mutual information and likelihood gain during training, each weighting under
                  both policies for b_t
    table.md      the gain at the end, as a table
    dilution.json every number drawn; with `--redraw` the figures are made from it again,
                  without training
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.entangle import Settings, entangle
from examples.flags import Parser, at_least
from examples.make_data import records
from examples.records import write
from examples.tasks import TASKS
from twcli.commands.precompute import precompute
from twcli.config.precompute import PrecomputeConfig
from twcli.config.train import TrainConfig
from twcli.data.dataset import read_examples
from twcli.data.padding import gather_padded
from twcli.evaluation.passes import forward_all
from twcli.models import baseline, loading, runtime
from twcli.storage.run_folder import RunFolder
from twcli.training import trainer
from twcli.training.loss import entropy, reconstruction
from twcli.training.setup import prepare

TRAIN_RECORDS, TEST_RECORDS, COMPLETIONS = 8000, 600, 4
MEASURE_EVERY = 50  # steps between two points of a curve
BOUNDARY = 0.9  # share of all b_t that lies in the first t0 tokens
COVERED_ROWS = 0.2  # a position is drawn where at least this share of the rows reaches it
PROFILED_TASKS = ("multidigit_addition", "sorting_algorithms", "grid_pathfinding")
TRAINED_TASK = "multidigit_addition"
# Okabe and Ito's colours, distinct to the colour-blind; each series has a dash or
# marker of its own besides.
BLUE, ORANGE, GREEN, RED, BLACK = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#000000"
# name: (weighting, policy, colour, dash); uniform weights read no b_t, so both policies are one run
RUNS = {
    "uniform (either policy)": ("uniform", "frozen", BLACK, ":"),
    "token, frozen": ("token", "frozen", ORANGE, "-"),
    "token, dynamic": ("token", "dynamic", ORANGE, "--"),
    "mixed, frozen": ("mixed", "frozen", BLUE, "-"),
    "mixed, dynamic": ("mixed", "dynamic", BLUE, "--"),
}


@dataclass(frozen=True)
class Plan:
    """How much is trained; the defaults take minutes on two cores."""

    entangle_steps: int = 1000
    steps: int = 600
    seeds: int = 3
    batch_tokens: int = 512
    lr: float = 3e-3
    beta: float = 0.02


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="dilution.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/figures"),
        metavar="DIR",
        help="default build/figures",
    )
    parser.add_argument(
        "--entangle-steps",
        type=at_least(1),
        default=Plan.entangle_steps,
        metavar="N",
        help="default %(default)s",
    )
    parser.add_argument(
        "--steps",
        type=at_least(MEASURE_EVERY),
        default=Plan.steps,
        metavar="N",
        help="training steps of each run; default %(default)s",
    )
    parser.add_argument(
        "--seeds", type=at_least(1), default=Plan.seeds, metavar="N", help="default %(default)s"
    )
    parser.add_argument(
        "--jobs",
        type=at_least(1),
        default=2,
        metavar="N",
        help="processes of one thread each; default %(default)s",
    )
    parser.add_argument(
        "--redraw", action="store_true", help="only draw again from the numbers in DIR"
    )
    arguments = parser.parse_args(argv)
    numbers = arguments.out / "dilution.json"
    runtime.quiet_transformers()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        if not arguments.redraw:
            plan = Plan(arguments.entangle_steps, arguments.steps, arguments.seeds)
            numbers.write_text(
                json.dumps(measure(arguments.out / "work", plan, arguments.jobs), indent=1),
                encoding="utf-8",
            )
        draw(json.loads(numbers.read_text(encoding="utf-8")), arguments.out)
    except OSError as error:
        parser.error(f"{error.filename or arguments.out}: {error.strerror}")
    say(f"{arguments.out}: profile.png, gradient.png, training.png, table.md")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def no_bar(_label: str, _total: int):
    yield lambda _count: None


# Numbers


def measure(work: Path, plan: Plan, jobs: int) -> dict[str, Any]:
    work.mkdir(exist_ok=True)
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=one_thread
    ) as pool:
        profiled = [(task, pool.submit(profile, work, task, plan)) for task in PROFILED_TASKS]
        profiles = {task: future.result() for task, future in profiled}
        started = [
            (name, seed, pool.submit(curve, work, TRAINED_TASK, name, seed, plan))
            for seed in range(plan.seeds)
            for name in RUNS
        ]
        runs: dict[str, list[Any]] = {name: [] for name in RUNS}
        for name, seed, future in started:
            runs[name].append(future.result())
            say(
                f"{name}, seed {seed}: mutual information "
                f"{future.result()['mutual_information'][-1]:.3f} nats, gain "
                f"{future.result()['gain'][-1]:.2f} nats an example"
            )
    return {"plan": asdict(plan), "profile": profiles, "gradient": gradients(), "training": runs}


def one_thread() -> None:
    """Threads that wait for each other cost models of this size more than they bring."""
    torch.set_num_threads(1)
    runtime.quiet_transformers()


def files(work: Path, task: str, plan: Plan) -> tuple[Path, Path, Path, Path]:
    """Training and test data, entangled model, cache."""
    return tuple(
        work / f"{task}{end}"
        for end in (".jsonl", "-test.jsonl", f"-{plan.entangle_steps}-steps", ".h5")
    )


def profile(work: Path, task: str, plan: Plan) -> dict[str, Any]:
    """Data, an entangled model and its b_t: mean by position, the boundary t0, mean
    effective t0 and mean T in tokens.
    """
    data, test, model, cache = files(work, task, plan)
    for file, number, seed in ((data, TRAIN_RECORDS, 0), (test, TEST_RECORDS, 1)):
        write(file, records(TASKS[task], number, COMPLETIONS, seed, set()))
    # an interrupted call continues with the models that it has
    if not (model / "config.json").exists():
        entangle(
            str(data),
            model,
            Settings(steps=plan.entangle_steps),
            lambda text: say(f"{task}: {text}"),
        )
    precompute(
        PrecomputeConfig(
            model=str(model), data=str(data), out=str(cache), overwrite=True, device="cpu"
        ),
        say,
        no_bar,
    )
    encoded, flat = frozen_nll(model, test)
    lengths = encoded.target_lengths
    nll = gather_padded(flat, encoded.target_offsets[:-1], lengths, np.nan)
    kept = np.isfinite(nll).mean(0) >= COVERED_ROWS
    mass, squares = np.nansum(nll, 1), np.nansum(nll**2, 1)
    before = np.cumsum(np.nansum(nll, 0)) / mass.sum()
    return {
        "mean": np.nanmean(nll[:, kept], 0).tolist(),
        "t0": int((before < BOUNDARY).sum()) + 1,
        "effective": float((mass**2 / squares).mean()),
        "T": float(lengths.mean()),
    }


def frozen_nll(model: Path, data: Path) -> tuple[Any, np.ndarray]:
    encoder, frozen = loading.load_encoder(str(model)), loading.load_model(str(model))
    encoded = encoder.encode(
        read_examples(str(data)), max_length=loading.context_length(frozen, None), source=str(data)
    )
    return encoded, baseline.score_flat(
        frozen, encoder, encoded, np.arange(len(encoded)), batch_tokens=4096
    )


def gradients(
    first: int = 2, totals: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
) -> dict[str, Any]:
    """Norm of the gradient of sum_z q(z) Reff(z) in q's logits: l_t(z) depends on z, and b_t > 0,
    in the first t0 tokens only.
    """
    kinds = {
        "uniform": (1.0, 0.0, "none"),
        "weighted with b_t": (0.0, 1.0, "none"),
        "mean b_t subtracted": (0.0, 1.0, "scalar-baseline"),
        "b_t subtracted": (0.0, 1.0, "token-baseline"),
    }
    result: dict[str, Any] = {"t0": first, "T": list(totals), "norm": {name: [] for name in kinds}}
    generator = torch.Generator().manual_seed(0)
    opening, rest = torch.rand(64, 4, first, dtype=torch.float64, generator=generator), 0.05
    start = torch.randn(64, 4, dtype=torch.float64, generator=generator)
    for total in totals:
        nll, weights = (
            torch.full((64, 4, total), rest, dtype=torch.float64),
            torch.zeros(64, total, dtype=torch.float64),
        )
        nll[..., :first], weights[:, :first] = opening, opening.mean(1)
        for name, (uniform_weight, token_weight, ablation) in kinds.items():
            logits = start.clone().requires_grad_()
            reff = reconstruction(
                nll,
                torch.ones(64, total, dtype=torch.bool),
                weights,
                uniform_weight=uniform_weight,
                token_weight=token_weight,
                tau=1e-4,
                ablation=ablation,
            )
            (logits.softmax(-1) * reff).sum(-1).mean().backward()
            result["norm"][name].append(logits.grad.norm().item())
    result["slope"] = {
        name: float(np.polyfit(np.log(totals), np.log(norms), 1)[0])
        for name, norms in result["norm"].items()
    }
    return result


def curve(work: Path, task: str, name: str, seed: int, plan: Plan) -> dict[str, list[float]]:
    """One run without warm start, measured on held-out records as it goes.

    A batch is sorted by length and so holds few strategies: mutual information is taken
    over the whole test file.
    """
    data, test, model, cache = files(work, task, plan)
    weighting, policy, _, _ = RUNS[name]
    out = work / f"run-{weighting}-{policy}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    config = TrainConfig(
        model=str(model),
        data=str(data),
        baseline=str(cache) if policy == "frozen" else None,
        baseline_policy=policy,
        latents=4,
        out=str(out),
        weighting=weighting,
        warm_start="none",
        steps=plan.steps,
        batch_tokens=plan.batch_tokens,
        lr=plan.lr,
        beta=plan.beta,
        seed=seed,
        device="cpu",
        checkpoint_every=plan.steps,
    )
    run = RunFolder(out)
    with run.writer():
        setup = prepare(config, run, lambda _text: None, no_bar)
        run.begin(config)
        encoded, flat = frozen_nll(model, test)
        frozen = np.add.reduceat(flat, encoded.target_offsets[:-1], dtype=np.float64).mean()
        result: dict[str, list[float]] = {
            key: [] for key in ("step", "mutual_information", "gain", "amplification")
        }
        for metrics in trainer.fit(setup, lambda _text: None):
            if metrics["step"] % MEASURE_EVERY == 0:
                setup.model.eval()
                passes = forward_all(
                    setup.model,
                    setup.encoder,
                    encoded,
                    config,
                    flat,
                    batch_tokens=4096,
                    progress=lambda _count: None,
                )
                setup.model.train()
                q = torch.from_numpy(passes.posterior)
                result["step"].append(metrics["step"])
                result["mutual_information"].append((entropy(q.mean(0)) - entropy(q).mean()).item())
                result["gain"].append(float(frozen - passes.marginal_nll.mean()))
                result["amplification"].append(metrics["amplification"])
    return result


# Figures


def draw(numbers: dict[str, Any], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150}
    )
    for name, paint in (
        ("profile", draw_profile),
        ("gradient", draw_gradient),
        ("training", draw_training),
    ):
        figure = paint(pyplot, numbers[name])
        figure.savefig(out / f"{name}.png", bbox_inches="tight")
        pyplot.close(figure)
    table = table_of(numbers["training"])
    (out / "table.md").write_text(table, encoding="utf-8")
    print(table, end="")


def draw_profile(pyplot: Any, profiles: dict[str, Any]) -> Any:
    figure, axes = pyplot.subplots(1, len(profiles), figsize=(10.5, 3), sharey=True)
    for axis, (task, found) in zip(axes, profiles.items(), strict=True):
        position = np.arange(1, len(found["mean"]) + 1)
        axis.bar(position, found["mean"], width=1.0, color=BLUE)
        axis.axvline(found["t0"] + 0.5, color=RED, linestyle="--", linewidth=1.5)
        text = (
            f"{BOUNDARY:.0%} of $b_t$ up to $t_0$ = {found['t0']}\nof T = {found['T']:.1f} "
            "tokens;\n"
            f"effective tokens {found['effective']:.1f}"
        )
        axis.annotate(
            text,
            (found["t0"] + 0.5, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(6, 0),
            textcoords="offset points",
            va="top",
            color=RED,
        )
        axis.set(title=task.replace("_", " "), xlabel="token of y")
    axes[0].set_ylabel("mean $b_t$ (nats)")
    return figure


def draw_gradient(pyplot: Any, found: dict[str, Any]) -> Any:
    figure, axis = pyplot.subplots(figsize=(6, 4))
    # The subtractions lie on the uniform line: open markers of other sizes keep all three in sight.
    looks = {
        "uniform": (BLACK, "o", 5, "-"),
        "weighted with b_t": (BLUE, "s", 6, "-"),
        "mean b_t subtracted": (ORANGE, "^", 10, "none"),
        "b_t subtracted": (GREEN, "D", 14, "none"),
    }
    for name, norms in found["norm"].items():
        colour, marker, size, line = looks[name]
        axis.loglog(
            found["T"],
            norms,
            color=colour,
            marker=marker,
            markersize=size,
            linestyle=line,
            markerfacecolor="none" if line == "none" else colour,
            markeredgewidth=1.5,
            label=(
                f"{name.replace('b_t', '$b_t$')} (slope {round(found['slope'][name], 2) + 0.0:g})"
            ),
        )
    axis.set(xlabel=f"T (tokens), $t_0$ = {found['t0']}", ylabel="norm of the posterior's gradient")
    axis.set_xticks(found["T"], [str(t) for t in found["T"]])
    axis.minorticks_off()
    axis.legend(frameon=False)
    return figure


def draw_training(pyplot: Any, runs: dict[str, Any]) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(10.5, 4))
    for name, curves in runs.items():
        _, _, colour, dash = RUNS[name]
        for axis, key in zip(axes, ("mutual_information", "gain"), strict=True):
            # One line a seed: seeds either find z or do not, so that their mean is a
            # run that none of them was.
            for seed, found in enumerate(curves):
                axis.plot(
                    found["step"],
                    found[key],
                    color=colour,
                    linestyle=dash,
                    linewidth=1.5,
                    label=None if seed else name,
                )
    axes[0].axhline(np.log(4), color="0.6", linewidth=1)
    axes[0].annotate(
        "log K",
        (axes[0].get_xlim()[0], np.log(4)),
        xytext=(4, -12),
        textcoords="offset points",
        color="0.4",
    )
    axes[0].set(xlabel="step", ylabel="mutual information of y and z (nats)")
    axes[1].axhline(0, color="0.6", linewidth=1)
    axes[1].set_yscale("symlog", linthresh=1)
    ticks = [2, 1, 0, -1, -2, -5, -10, -20, -50, -100]
    low, high = axes[1].get_ylim()
    axes[1].set_yticks(
        [t for t in ticks if low <= t <= high], [str(t) for t in ticks if low <= t <= high]
    )
    axes[1].minorticks_off()
    axes[1].set(xlabel="step", ylabel="likelihood.gain (nats an example)")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(runs), frameon=False
    )
    return figure


def table_of(runs: dict[str, Any]) -> str:
    """Mean and range over the seeds at the last step, as Markdown."""
    lines = [
        "| loss | likelihood.gain, nats an example | mutual information, nats | amplification |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, curves in runs.items():
        cells = [
            span([c[key][-1] for c in curves], digits)
            for key, digits in (("gain", 2), ("mutual_information", 3), ("amplification", 1))
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def span(values: list[float | None], digits: int) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"


if __name__ == "__main__":
    main()
