"""Options of `twcli train`; those of the loss are in `objective`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from twcli.config.inputs import AUTO, InputsConfig
from twcli.config.objective import ObjectiveConfig
from twcli.config.options import (
    INPUTS,
    OPTIMISATION,
    OUTPUT,
    RESOURCES,
    STRATEGIES,
    flag_of,
    option,
)
from twcli.errors import UserError

TRACKERS = ("tensorboard", "wandb", "mlflow")  # as accelerate calls them
NOT_IDENTITY = (
    "overwrite",
    "out",
    "device",
    "keep_checkpoints",
    "checkpoint_every",
    "shard",
    "tracker",
)
HELD_BY_ITSELF = (
    "is gone: names are held until the generator reads the latents, which is measured; leave it out"
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ObjectiveConfig, InputsConfig):
    """`twcli train`: the entangled model becomes one with K latent strategies."""

    retired: ClassVar[dict[str, str]] = {
        **InputsConfig.retired,
        "tensorboard": "is --tracker tensorboard now",
        "baseline_precision": "is gone: the file at --baseline holds its precision; leave it out",
        "hold": HELD_BY_ITSELF,
        "trust": HELD_BY_ITSELF,
        "release": "is gone: the posterior is taught the names to the end; leave it out",
    }

    baseline: str | None = option(
        None,
        group=INPUTS,
        help="File that `twcli precompute` wrote for this model and data.",
        path=True,
    )
    latents: int | str | None = option(
        None,
        group=STRATEGIES,
        help=(
            "Number of latents K, or auto: choose K by how stable the clusters are.  [default: "
            "auto; with --names the number there]"
        ),
        minimum=2,
        maximum=1024,
        words=(AUTO,),
    )
    names: str | None = option(
        None,
        group=INPUTS,
        help=(
            "File that `twcli discover` wrote, edited or not: a latent for each record; those with "
            "null are assigned one."
        ),
        path=True,
    )
    out: str = option(group=OUTPUT, help="Run folder to write.", path=True)

    batch_tokens: int | None = option(
        None,
        group=OPTIMISATION,
        help=(
            "Maximum tokens per batch, padding included; the K latent copies are not counted. "
            "Default: 2048, with LoRA 600, but at least eight records of mean length."
        ),
        minimum=1,
    )

    history_dropout: float = option(
        0.0,
        group=STRATEGIES,
        rare=True,
        help=(
            "Probability of masking each past y token in the generator's input (word dropout), to"
            " keep z informative."
        ),
        minimum=0.0,
        maximum=0.9,
    )
    adapt: str | None = option(
        None,
        group=OPTIMISATION,
        help=(
            "What is trained: the full model, LoRA updates and the latent tokens' embeddings, or "
            "(frozen) those embeddings alone. Default: full up to 50 million parameters, lora "
            "above."
        ),
        choices=("full", "lora", "frozen"),
    )
    lora_rank: int = option(
        16, group=OPTIMISATION, rare=True, help="Rank of the LoRA updates.", minimum=1
    )
    lora_alpha: float = option(
        32.0,
        group=OPTIMISATION,
        rare=True,
        help="Scale of the LoRA updates: they are multiplied by alpha / rank.",
        above=0.0,
    )
    lora_targets: str = option(
        "all-linear",
        group=OPTIMISATION,
        rare=True,
        help="Layers with LoRA updates: names separated by commas, or all-linear.",
    )
    execution: str = option(
        "auto",
        group=RESOURCES,
        rare=True,
        help=(
            "How sequences with a common prompt are computed: plain, each separately; branches or"
            " tree, the prompt once with one of two attention layouts; auto, the fastest for each"
            " batch."
        ),
        choices=("auto", "plain", "branches", "tree"),
    )
    latent_chunk: int | None = option(
        None,
        group=RESOURCES,
        rare=True,
        help=(
            "Latents computed at a time, to save memory; default: all. The gradient is the same, "
            "in a third more time."
        ),
        minimum=1,
    )
    prune: float = option(
        1e-3,
        group=RESOURCES,
        rare=True,
        help=(
            "Largest share of a batch's b_t, or of the posterior's mass, that a step may skip; "
            "the bound on the loss is logged. 0 skips nothing."
        ),
        minimum=0.0,
        maximum=0.5,
    )
    steps: int | None = option(
        None,
        group=OPTIMISATION,
        help=(
            "Optimiser steps; default: three passes over the data, 1000 to 2000 steps, with LoRA "
            "150 to 2000, fewer where nothing improves any longer."
        ),
        minimum=1,
    )
    epochs: int | None = option(
        None,
        group=OPTIMISATION,
        rare=True,
        help="Passes over the data, instead of --steps.",
        minimum=1,
    )
    lr: float | None = option(
        None,
        group=OPTIMISATION,
        help=(
            "Peak learning rate; default 2e-3 x min(1, 64 / hidden size) x min(1, 1000 / steps), "
            "with LoRA 2e-3 x min(1, 576 / hidden size)."
        ),
        above=0.0,
    )
    accumulate: int = option(
        1,
        group=OPTIMISATION,
        rare=True,
        help="Batches per process and optimiser step (gradient accumulation).",
        minimum=1,
    )
    shard: bool = option(
        False,
        group=RESOURCES,
        rare=True,
        help=("Shard weights, gradients and optimiser state over the processes (FSDP2)."),
    )
    compile: bool = option(
        False,
        group=RESOURCES,
        rare=True,
        help="Compile the model with torch.compile; --execution is then plain.",
    )
    gradient_checkpointing: bool = option(
        False,
        group=RESOURCES,
        rare=True,
        help=("Use less memory for about a third more time; --execution is then plain."),
    )
    seed: int = option(
        0,
        group=OPTIMISATION,
        rare=True,
        help="Seed of the data order, the initial values and the clustering.",
        minimum=0,
        maximum=2**31 - 1,
    )
    seeds: str | None = option(
        None,
        group=OPTIMISATION,
        rare=True,
        help=(
            "Several seeds, separated by commas: a run each in OUT/seed-N, all with the naming and "
            "the held-out records of the first. `twcli eval --run OUT` compares them."
        ),
    )
    checkpoint_every: int = option(
        100, group=OUTPUT, rare=True, help="Steps between checkpoints.", minimum=1
    )
    keep_checkpoints: int = option(
        2, group=OUTPUT, rare=True, help="Number of checkpoints kept.", minimum=1
    )
    tracker: str | None = option(
        None,
        group=OUTPUT,
        rare=True,
        help=(
            "Also log each step's metrics there; tensorboard writes to tensorboard/ in the run "
            "folder."
        ),
        choices=TRACKERS,
    )
    overwrite: bool = option(False, group=OUTPUT, help="Start over, replacing the run at --out.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_length()
        self.each_seed()
        self._check_latents()
        self._check_baseline()
        self._check_memory()
        self._check_execution()

    def _check_length(self) -> None:
        """One of the two says how long the run is; with neither, the data's size does. Raises
        UserError where both are given.
        """
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs exclude each other; give one of them")

    def _check_latents(self) -> None:
        """K and where the first naming comes from agree; the naming chooses K where nothing else
        does.
        """
        if self.latents is None and self.names is None:
            object.__setattr__(self, "latents", AUTO)  # frozen
        if self.latents == AUTO and self.names is not None:
            raise UserError("--latents auto: --names says how many; leave one of them out")
        if self.names is not None and self.warm_start == "none":
            raise UserError("--names: is a warm start, and --warm-start is none; leave one out")
        if self.latents == AUTO and self.warm_start == "none":
            raise UserError(
                "--latents auto, the default: counts the strategies that the naming finds, and "
                "--warm-start is none; give a number"
            )

    def _check_baseline(self) -> None:
        """A frozen b_t comes from a file."""
        if self.baseline_policy == "frozen" and self.baseline is None:
            raise UserError(
                "--baseline is required: give the file that `twcli precompute` wrote or `twcli "
                "discover` left beside the names (NAMES.bt.h5), or --baseline-policy dynamic"
            )

    def _check_memory(self) -> None:
        """What saves memory agrees with what is trained."""
        if self.divergence and self.latent_chunk is not None:
            raise UserError(
                "--divergence: compares all latents, which --latent-chunk computes a few at a "
                "time; leave one of them out"
            )
        if self.shard and self.adapt not in (None, "full"):
            raise UserError(
                f"--shard: shards weights that are trained in full, and --adapt is {self.adapt}; "
                "leave one of them out"
            )
        if self.adapt == "lora" and self.posterior == "separate":
            raise UserError(
                "--adapt lora: --posterior separate would train a whole copy of the backbone; "
                "give shared or exact"
            )

    def _check_execution(self) -> None:
        """Options under which prompts are computed plainly agree with the others."""
        if self.compile and (self.shard or self.gradient_checkpointing):
            raise UserError(
                "--compile: goes with neither --shard nor --gradient-checkpointing; "
                "leave one of them out"
            )
        if self.execution not in ("branches", "tree"):
            return
        for name in ("gradient_checkpointing", "compile"):
            if getattr(self, name):
                raise UserError(
                    f"--execution {self.execution}: is not available with {flag_of(name)}; "
                    "leave one out"
                )

    def each_seed(self) -> list[int]:
        """The seeds of `--seeds`, or the one of `--seed`.

        Raises:
            UserError: no numbers, out of bounds, or one of them twice.
        """
        if self.seeds is None:
            return [self.seed]
        parts = [part.strip() for part in self.seeds.split(",")]
        # isdecimal takes digits of all scripts, which int reads as well
        if not all(part.isdecimal() and len(part) <= 10 for part in parts):
            raise UserError(
                f"--seeds: '{self.seeds[:60]}' is no list of numbers; give them with commas: 0,1,2"
            )
        seeds = [int(part) for part in parts]
        if max(seeds) >= 2**31 or len(set(seeds)) < len(seeds):
            raise UserError("--seeds: give numbers below 2147483648, each once")
        return seeds

    @property
    def resolved_latents(self) -> int:
        """K, once `auto` and the names are resolved."""
        assert isinstance(self.latents, int)
        return self.latents

    @property
    def resolved_batch_tokens(self) -> int:
        """Maximum tokens per batch, once the default is resolved."""
        assert self.batch_tokens is not None
        return self.batch_tokens

    def identity(self) -> dict[str, Any]:
        """The settings that may not change between a run and its resumption, by name: all but
        `NOT_IDENTITY`.
        """
        return {
            name: value for name, value in self.to_mapping().items() if name not in NOT_IDENTITY
        }
