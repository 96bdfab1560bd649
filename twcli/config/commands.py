"""One frozen, validated dataclass a command; the command line's options
are made from these fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from twcli.config.options import Config, flag_of, option
from twcli.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
NOT_IDENTITY = (
    "overwrite",
    "out",
    "device",
    "keep_checkpoints",
    "checkpoint_every",
    "shard",
    "tensorboard",
)
MODEL_HELP = "Entangled model: a Hugging Face folder, a GGUF file or a hub name."
AUTO = "auto"
EXPORTS = ("hf", "adapter", "gguf")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
LEAST_TEMPERATURE = 1e-3
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where the records are and what their fields are called."""

    data: str = option(help="Records: a JSONL file, a `datasets` folder or a hub name.", path=True)
    x_field: str = option("x", help="Field that holds the prompt.")
    y_field: str = option("y", help="Field that holds the completion.")
    strategy_field: str = option(
        "strategy",
        help="Field that holds the strategy label, where there is one (evaluation only).",
    )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Config):
    """Where and in which precision the model runs."""

    device: str = option("auto", help="Device to run on.", choices=DEVICES)
    precision: str = option(
        "fp32",
        help="Precision of the arithmetic. Losses and the weights that are trained stay float32.",
        choices=PRECISIONS,
    )
    attention: str = option("sdpa", help="Attention backend of transformers.", choices=ATTENTION)
    batch_tokens: int = option(4096, help="Tokens a batch, padding included.", minimum=1)
    max_length: int | None = option(
        None, help="Longest sequence in tokens; default: the model's own limit.", minimum=8
    )


@dataclass(frozen=True, kw_only=True)
class TemplateConfig(Config):
    """What stands around x, the latent and y."""

    template: str = option(
        "tags",
        help=(
            "Template around x and y: `tags`, `chat` (the tokenizer's own: x is the user's turn, y "
            "the assistant's), or a text file with {x}, {z} and {y}."
        ),
    )


@dataclass(frozen=True, kw_only=True)
class InputsConfig(DataConfig, TemplateConfig, ComputeConfig):
    """A frozen model and the records that it scores."""

    model: str = option(help=MODEL_HELP, path=True)

    def inputs(self) -> dict[str, Any]:
        """The arguments of `models.inputs.open_inputs`."""
        names = ("model", "data", "x_field", "y_field", "template", "precision", "attention")
        return {name: getattr(self, name) for name in (*names, "max_length")}


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig(InputsConfig):
    """`twcli precompute`: the frozen model, once over the data."""

    out: str = option(help="HDF5 file to write.", path=True)
    batch_tokens: int | None = option(
        None,
        help=(
            "Tokens a batch; default: what a CPU's cache holds for this model, "
            "at most 65536 on other devices."
        ),
        minimum=1,
    )
    execution: str = option(
        "auto",
        help=(
            "How rows are read: plain, each by itself and padded; auto, without padding and a "
            "prompt once for its completions."
        ),
        choices=("auto", "plain"),
    )
    shard_rows: int = option(
        4096, help="Rows that are made durable together; a rerun resumes after them.", minimum=1
    )
    overwrite: bool = option(False, help="Replace the cache at --out once the new one is complete.")


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig(InputsConfig):
    """`twcli discover`: a latent for each record, found without labels."""

    out: str = option(
        help="names.jsonl to write; its page and the features lie beside it.", path=True
    )
    latents: int | str = option(
        AUTO,
        help="Number of latent strategies K, or auto: chosen by how stable the naming is.",
        minimum=2,
        maximum=1024,
        words=(AUTO,),
    )
    seed: int = option(0, help="Seed of the search.", minimum=0, maximum=2**31 - 1)
    overwrite: bool = option(
        False, help="Replace the names at --out, and features of another model or data."
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(InputsConfig):
    """`twcli train`: the entangled model becomes one with K latent strategies."""

    retired: ClassVar[dict[str, str]] = {
        "baseline_precision": "is gone: the file at --baseline holds its precision; leave it out",
    }

    baseline: str | None = option(
        None,
        help=(
            "HDF5 file that `twcli precompute` wrote for this model and data; "
            "required unless --baseline-policy is dynamic."
        ),
        path=True,
    )
    latents: int | str | None = option(
        None,
        help=(
            "Number of latent strategies K, or auto: chosen by how stable the naming is. "
            "Required unless --names is given."
        ),
        minimum=2,
        maximum=1024,
        words=(AUTO,),
    )
    names: str | None = option(
        None,
        help=(
            "File that `twcli discover` wrote, as it is or edited: a latent for each record; "
            "a latent that is null is found."
        ),
        path=True,
    )
    out: str = option(help="Run folder to write.", path=True)

    batch_tokens: int = option(
        2048, help="Tokens a batch, padding included, before the branches.", minimum=1
    )

    weighting: str = option(
        "mixed",
        help=(
            "Weights of the token losses: b_t, none, or the uniform and the weighted term together."
        ),
        choices=("token", "uniform", "mixed"),
    )
    uniform_weight: float = option(
        1.0, help="Factor of the uniform term under mixed weighting.", minimum=0.0
    )
    token_weight: float = option(
        2.0, help="Factor of the b_t-weighted term under mixed weighting.", minimum=0.0
    )
    baseline_policy: str = option(
        "frozen",
        help=(
            "b_t of the frozen model (the file at --baseline), or of the backbone as it is at "
            "each step."
        ),
        choices=("frozen", "dynamic"),
    )
    ablation: str = option(
        "none",
        help=(
            "Subtract b_t in the weighted term instead of weighting with it: its mean over y, "
            "or each token's."
        ),
        choices=("none", "scalar-baseline", "token-baseline"),
    )
    beta: float = option(0.1, help="Factor of KL(posterior || router), in nats.", above=0.0)
    beta_warmup: float = option(
        0.0,
        help="Share of the steps, or of each of --beta-cycles, over which beta rises from 0.",
        minimum=0.0,
        maximum=1.0,
    )
    beta_cycles: int = option(1, help="Times that beta rises anew.", minimum=1)
    free_bits: float = option(
        0.0,
        help="KL in nats that costs an example nothing, where the posterior is learned.",
        minimum=0.0,
    )
    posterior_update: str = option(
        "learned",
        help=(
            "Where the posterior is learned: by the objective's gradient; or it is taught the "
            "likeliest latent of each example (hard EM), or the closed form with latents balanced "
            "over the batch (Sinkhorn)."
        ),
        choices=("learned", "hard", "balanced"),
    )
    divergence: float = option(
        0.0,
        help=(
            "Factor of the b_t-weighted Jensen-Shannon divergence between the latents' next "
            "tokens, which is rewarded where the posterior is learned."
        ),
        minimum=0.0,
    )
    normalise: bool = option(False, help="Divide a row's reconstruction by its mean b_t.")
    tau: float = option(
        1e-4,
        help="Sum of b_t (nats) up to which a row falls back to the uniform average.",
        minimum=0.0,
    )
    posterior: str = option(
        "shared",
        help="q(z|x,y): a head on the trained backbone, on a copy of its own, or the closed form.",
        choices=("shared", "separate", "exact"),
    )
    warm_start: str = option(
        "centered",
        help="First posterior: the naming of the records that is found without labels, or none.",
        choices=("centered", "none"),
    )
    hold: float | None = option(
        None,
        help=(
            "Share of the steps in which the posterior is held at the naming; after it the "
            "generator's own assignment of a prompt's completions to latents takes its place. "
            "Default: 0.15 where each strategy writes one string a prompt, else all of them."
        ),
        minimum=0.0,
        maximum=1.0,
    )
    trust: float = option(
        0.0,
        help=(
            "Nats by which another latent must be likelier than the named one for a completion "
            "to take it, where each strategy writes one string; fades to 0 between --hold and "
            "--release."
        ),
        minimum=0.0,
    )
    release: float = option(
        0.0,
        help="Share of the last steps in which the learned posterior takes over.",
        minimum=0.0,
        maximum=1.0,
    )
    latent_tokens: int = option(
        1,
        help="Vocabulary tokens P that spell one latent; more widen a single-token bottleneck.",
        minimum=1,
        maximum=64,
    )
    history_dropout: float = option(
        0.0,
        help=(
            "Share of y's input tokens hidden from the generator in training, "
            "so that it goes on needing z."
        ),
        minimum=0.0,
        maximum=0.9,
    )
    adapt: str = option(
        "full",
        help=(
            "Train the whole backbone, low-rank updates of it and the latent tokens' rows, "
            "or only those rows."
        ),
        choices=("full", "lora", "frozen"),
    )
    lora_rank: int = option(16, help="Rank of the updates under --adapt lora.", minimum=1)
    lora_alpha: float = option(
        32.0, help="Scale of the updates under --adapt lora; they count alpha / rank.", above=0.0
    )
    lora_targets: str = option(
        "all-linear",
        help="Layers that --adapt lora updates: names separated by commas, or all-linear.",
    )
    execution: str = option(
        "auto",
        help=(
            "How the sequences of one prompt are read: plain, each by itself; branches or tree, "
            "the prompt once and attention in one of two forms, branches on a GPU in bf16 without "
            "padding; auto, what is cheapest for the shape of each batch, on a CPU in a third "
            "form too."
        ),
        choices=("auto", "plain", "branches", "tree"),
    )
    latent_chunk: int | None = option(
        None,
        help=(
            "Latents whose branches are in memory together; default: all. The same gradient, "
            "from a third more arithmetic."
        ),
        minimum=1,
    )
    prune: float = option(
        1e-3,
        help=(
            "Share that a step may leave out: of a batch's b_t where branches are only compared, "
            "of the posterior's mass where branches are trained; the bound on the loss is logged; "
            "0 leaves out nothing."
        ),
        minimum=0.0,
        maximum=0.5,
    )
    steps: int | None = option(
        None, help="Optimiser steps; default 2000 unless --epochs is given.", minimum=1
    )
    epochs: int | None = option(None, help="Passes over the data, instead of --steps.", minimum=1)
    lr: float | None = option(
        None, help="Peak learning rate; default 2e-3 x min(1, 64 / hidden size).", above=0.0
    )
    accumulate: int = option(
        1, help="Batches a process reads one after the other for one optimiser step.", minimum=1
    )
    shard: bool = option(
        False,
        help=(
            "Split weights, gradients and optimiser state over the processes (FSDP2), "
            "instead of a copy each."
        ),
    )
    compile: bool = option(
        False,
        help=(
            "Compile the backbone with torch.compile: a minute or more at first, "
            "and prompts are read plainly."
        ),
    )
    gradient_checkpointing: bool = option(
        False, help="Less memory for about a third more time; prompts are read plainly."
    )
    seed: int = option(
        0,
        help="Seed of the data order, the initial values and the warm start.",
        minimum=0,
        maximum=2**31 - 1,
    )
    checkpoint_every: int = option(100, help="Steps between checkpoints.", minimum=1)
    keep_checkpoints: int = option(2, help="Checkpoints kept.", minimum=1)
    tensorboard: bool = option(
        False,
        help="Also write each step's metrics for TensorBoard, to tensorboard/ in the run folder.",
    )
    overwrite: bool = option(False, help="Start anew, replacing what is there.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs exclude each other; give one of them")
        if self.latents is None and self.names is None:
            raise UserError(
                "--latents is required: give a number or auto, or --names with the file of "
                "`twcli discover`"
            )
        if self.latents == AUTO and self.names is not None:
            raise UserError("--latents auto: --names says how many; leave one of them out")
        if self.names is not None and self.warm_start == "none":
            raise UserError("--names: is a warm start, and --warm-start is none; leave one out")
        if (self.hold or 0.0) + self.release > 1:
            raise UserError(
                "--hold and --release are shares of the steps and add up to more than 1"
            )
        if self.weighting == "mixed" and self.uniform_weight + self.token_weight == 0:
            raise UserError(
                "--uniform-weight and --token-weight are both 0; one of them must be positive"
            )
        if self.latents == AUTO and self.warm_start == "none":
            raise UserError(
                "--latents auto: counts the strategies that the naming finds, and --warm-start is "
                "none; give a number"
            )
        if self.baseline_policy == "frozen" and self.baseline is None:
            raise UserError(
                "--baseline is required: give the file that `twcli precompute` wrote, "
                "or --baseline-policy dynamic"
            )
        if self.beta_cycles > 1 and not self.beta_warmup:
            raise UserError(
                "--beta-cycles: beta rises over --beta-warmup of each cycle, and that is 0; "
                "give --beta-warmup 0.5"
            )
        if self.divergence and self.latent_chunk is not None:
            raise UserError(
                "--divergence: compares all latents, which --latent-chunk reads one after the "
                "other; leave one of them out"
            )
        if self.shard and self.adapt != "full":
            raise UserError(
                f"--shard: splits what is trained in full, and --adapt is {self.adapt}; "
                "leave one of them out"
            )
        if self.compile and (self.shard or self.gradient_checkpointing):
            raise UserError(
                "--compile: goes with neither --shard nor --gradient-checkpointing; "
                "leave one of them out"
            )
        plainly = next(
            (name for name in ("gradient_checkpointing", "compile") if getattr(self, name)), None
        )
        if plainly and self.execution in ("branches", "tree"):
            raise UserError(
                f"--execution {self.execution}: prompts are read plainly with {flag_of(plainly)}; "
                "leave one out"
            )
        if self.adapt == "lora" and self.posterior == "separate":
            raise UserError(
                "--adapt lora: --posterior separate would train a whole copy of the backbone; "
                "give shared or exact"
            )
        if self.ablation != "none" and self.term_weights()[1] == 0:
            raise UserError(
                f"--ablation {self.ablation}: changes the term that b_t weights, "
                "and --weighting and --token-weight leave none; give --weighting token or mixed"
            )

    def identity(self) -> dict[str, Any]:
        """The settings that may not change between a run and its resumption."""
        return {
            name: value for name, value in self.to_mapping().items() if name not in NOT_IDENTITY
        }

    @property
    def free_only(self) -> str | None:
        """The first option given that acts only where the posterior is learned, as its flag."""
        given = {
            "free_bits": self.free_bits > 0,
            "posterior_update": self.posterior_update != "learned",
            "divergence": self.divergence > 0,
        }
        return next((flag_of(name) for name, here in given.items() if here), None)

    def term_weights(self) -> tuple[float, float]:
        """Factors of the uniform and of the token-weighted reconstruction term."""
        return {
            "uniform": (1.0, 0.0),
            "token": (0.0, 1.0),
            "mixed": (self.uniform_weight, self.token_weight),
        }[self.weighting]

    @property
    def uses_weights(self) -> bool:
        """Whether b_t weights any token."""
        return self.ablation == "none" and self.term_weights()[1] > 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DataConfig, ComputeConfig):
    """`twcli eval`: did the posterior collapse, and does z mean a strategy?"""

    run: str = option(help="Run folder that `twcli train` wrote.", path=True)
    judge: str | None = option(
        None,
        help=(
            "Who says what is right: exact, number (the last one), regex:PATTERN, "
            "reasoning_gym:TASK, cmd:COMMAND (JSON in, JSON out), or MODULE:FUNCTION with "
            "judge(x, y) -> (strategy, correct)."
        ),
    )
    judge_seconds: float = option(
        10.0, help="Time limit of the judge for one completion.", above=0.0, maximum=86400.0
    )
    model: str | None = option(
        None, help="Frozen model for the likelihood gain; default: the one of the run.", path=True
    )
    max_new_tokens: int | None = option(
        None, help="Longest generated completion; default: longest y of the data + 16.", minimum=1
    )
    bootstrap: int = option(1000, help="Resamples behind each 95 % interval.", minimum=10)
    seed: int = option(
        0, help="Seed of the halves and of the resamples.", minimum=0, maximum=2**31 - 1
    )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(TemplateConfig, ComputeConfig):
    """`twcli sample`: completions of the frozen model, or of a trained run by latent."""

    model: str | None = option(None, help="Entangled model to sample from.", path=True)
    run: str | None = option(None, help="Run folder to sample from.", path=True)
    data: str | None = option(None, help="Records whose prompts to complete.", path=True)
    x: str | None = option(None, help="One prompt to complete.")
    interactive: bool = option(
        False,
        help=(
            "Read prompts from the terminal, one a line, and show what every latent makes of each."
        ),
    )
    x_field: str = option("x", help="Field that holds the prompt.")
    latent: str | None = option(
        None, help="Latent to use: a number, `all` or `router` (default; runs only)."
    )
    n: int = option(1, help="Completions a prompt (and latent).", minimum=1)
    temperature: float = option(1.0, help="Sampling temperature; 0 is greedy.", minimum=0.0)
    max_new_tokens: int | None = option(
        None, help="Longest completion; default: what the model's limit leaves.", minimum=1
    )
    seed: int = option(0, help="Seed of the sampling.", minimum=0, maximum=2**31 - 1)
    out: str | None = option(None, help="JSONL file to write; default: standard output.", path=True)
    overwrite: bool = option(False, help="Replace the file at --out.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.run is None):
            raise UserError("give one of --model (frozen model) and --run (trained run)")
        if (self.data is not None) + (self.x is not None) + self.interactive != 1:
            raise UserError(
                "give one of --data (records), --x (one prompt) and --interactive (prompts that "
                "you type)"
            )
        if self.run is not None and self.template != "tags":
            raise UserError("--template goes with --model; a run has its own")
        if self.data is None and self.x_field != "x":
            raise UserError("--x-field is of the records at --data; give --data or leave it out")
        if 0 < self.temperature < LEAST_TEMPERATURE:  # logits over it would not be finite
            raise UserError(
                f"--temperature: {self.temperature} is too small; give 0, which is greedy, "
                f"or at least {LEAST_TEMPERATURE}"
            )
        if self.interactive and (self.out is not None or self.latent not in (None, "all")):
            raise UserError(
                "--interactive: shows all latents on the terminal; leave --out and --latent out"
            )
        if self.model is not None and self.latent is not None:
            raise UserError("--latent needs --run; the frozen model has no latents")
        if (
            self.latent is not None
            and self.latent not in ("all", "router")
            and not self.latent.isdecimal()
        ):
            raise UserError(f"--latent: '{self.latent}' is not a number, 'all' or 'router'")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """`twcli export`: a trained run as a model that runs without this package."""

    run: str = option(help="Run folder that `twcli train` wrote.", path=True)
    to: str = option(
        help=(
            "Form: hf, a merged folder for transformers and most servers; adapter, for peft on the "
            "base model; gguf, for llama.cpp."
        ),
        choices=EXPORTS,
    )
    out: str = option(help="Folder to write.", path=True)
    name: tuple[str, ...] = option(
        (),
        help=(
            "Name of a latent, as 0=terse; then latent='terse' works as latent=0 does. Default: "
            "the names in the file that the run was trained with."
        ),
    )
    latent: str | None = option(
        None,
        help=(
            "Latent where a call names none: a number or a name; default: the most frequent one."
        ),
    )
    precision: str = option(
        "fp32", help="Precision of the weights that are written.", choices=PRECISIONS
    )
    device: str = option("auto", help="Device on which the export is checked.", choices=DEVICES)
    push_to_hub: str | None = option(
        None, help="Also upload the folder to this Hugging Face repository, OWNER/NAME."
    )
    overwrite: bool = option(False, help="Replace what is at --out.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to == "adapter" and self.precision != "fp32":
            raise UserError(
                "--to adapter: its weights are written as they were trained; leave --precision out"
            )
        if self.push_to_hub is not None and not REPOSITORY.fullmatch(self.push_to_hub):
            raise UserError(f"--push-to-hub: '{self.push_to_hub}' is not OWNER/NAME")

    def names(self) -> dict[int, str]:
        """The names that were given, by latent.

        Raises:
            UserError: one is not NUMBER=NAME, or a latent has two.
        """
        found: dict[int, str] = {}
        for text in self.name:
            number, equals, name = text.partition("=")
            if not equals or not number.strip().isdecimal():
                raise UserError(f"--name {text}: give NUMBER=NAME, such as 0=terse")
            if found.setdefault(int(number), name) != name:
                raise UserError(f"--name {text}: latent {int(number)} has two names; leave one out")
        return found
