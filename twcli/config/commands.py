"""One frozen, validated dataclass a command; the command line's options
are made from these fields.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from twcli.config.options import (
    INPUTS,
    LITERATURE,
    OPTIMISATION,
    OUTPUT,
    RESOURCES,
    STRATEGIES,
    Config,
    flag_of,
    option,
)
from twcli.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
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
MODEL_HELP = "Entangled model: a Hugging Face folder, a GGUF file or a hub name."
# What else a chat template or `apply_chat_template` knows by these names.
TAKEN_VARIABLES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "latent",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
AUTO = "auto"
TAU = 1e-4  # nats
EXPORTS = ("hf", "adapter", "gguf")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
DATA_HELP = (
    "Records: a JSONL, JSON, CSV, TSV or Parquet file, a pattern or several with commas, "
    "a `datasets` folder, or a hub name as NAME:CONFIG:SPLIT."
)
TOO_LONG = ("error", "skip", "truncate-left")  # what `data.long_rows` does
FORMAT_HELP = "Form of the records; auto: recognised from the first ones."
# What `data.formats` reads.
FORMATS = (
    AUTO,
    "fields",
    "preference",
    "completions",
    "messages",
    "sharegpt",
    "prompt-completion",
    "alpaca",
    "question-answer",
)
HELD_BY_ITSELF = (
    "is gone: names are held until the generator reads the latents, which is measured; leave it out"
)
LEAST_TEMPERATURE = 1e-3
CONCURRENCY = 32  # requests at once
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where the records are and what their fields are called."""

    data: str = option(group=INPUTS, help=DATA_HELP, path=True)
    format: str = option(AUTO, group=INPUTS, rare=True, help=FORMAT_HELP, choices=FORMATS)
    x_field: str = option("x", group=INPUTS, rare=True, help="Field that holds the prompt.")
    y_field: str = option("y", group=INPUTS, rare=True, help="Field that holds the completion.")
    each_turn: bool = option(
        False,
        group=INPUTS,
        rare=True,
        help="Of a conversation every turn of the assistant is an example, not only the last.",
    )

    @property
    def fields(self) -> dict[str, Any]:
        """What `data.dataset.stream_examples` needs to know of the records."""
        names = ("format", "x_field", "y_field", "each_turn")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Config):
    """Where and in which precision the model runs."""

    device: str = option("auto", group=RESOURCES, help="Device to run on.", choices=DEVICES)
    precision: str = option(
        "fp32",
        group=RESOURCES,
        help="Precision of the arithmetic. Losses and trained weights stay float32.",
        choices=PRECISIONS,
    )
    attention: str = option(
        "sdpa",
        group=RESOURCES,
        rare=True,
        help="Attention implementation of transformers.",
        choices=ATTENTION,
    )
    max_length: int | None = option(
        None,
        group=INPUTS,
        rare=True,
        help="Maximum sequence length in tokens; default: the model's context.",
        minimum=8,
    )


@dataclass(frozen=True, kw_only=True)
class BatchConfig(Config):
    """How much goes through the model at a time."""

    batch_tokens: int = option(
        4096, group=RESOURCES, help="Maximum tokens per batch, padding included.", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class TemplateConfig(Config):
    """The text around x, the latent and y."""

    template: str = option(
        AUTO,
        group=INPUTS,
        help=(
            "Text around x and y: `tags`, `chat` (the tokenizer's chat template), another chat "
            "template in a .jinja file, or a text file with {x}, {z} and {y}; auto: chat where the "
            "tokenizer has a chat template and not the tags."
        ),
    )
    chat_template_kwargs: str | None = option(
        None,
        group=INPUTS,
        rare=True,
        help=(
            "Variables of the chat template, as a JSON object: "
            """'{"enable_thinking": false}'; the run keeps them as defaults."""
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.chat_settings:
            return
        if self.template not in ("chat", AUTO) and not self.template.endswith(".jinja"):
            raise UserError(
                "--chat-template-kwargs: are variables of a chat template; "
                "give --template chat or leave them out"
            )

    @property
    def chat_settings(self) -> dict[str, Any]:
        """The variables of the chat template.

        Raises:
            UserError: not a JSON object, or a name that is not the template's.
        """
        text = self.chat_template_kwargs
        if text is None:
            return {}
        example = """write e.g. '{"enable_thinking": false}'"""
        try:
            settings = json.loads(text)
        except ValueError as error:
            raise UserError(
                f"--chat-template-kwargs {text[:60]}: not JSON ({error}); {example}"
            ) from error
        if not isinstance(settings, dict):
            raise UserError(f"--chat-template-kwargs {text[:60]}: must be a JSON object; {example}")
        for name in settings:
            if not name.isidentifier() or name in TAKEN_VARIABLES:
                raise UserError(
                    f"--chat-template-kwargs: {name!r} cannot be set; "
                    "give variables that the chat template asks for"
                )
        return settings


@dataclass(frozen=True, kw_only=True)
class InputsConfig(DataConfig, TemplateConfig, ComputeConfig):
    """A frozen model and the records that it scores."""

    retired: ClassVar[dict[str, str]] = {
        "strategy_field": "is gone: only `twcli eval` reads the strategies; leave it out",
    }

    model: str = option(group=INPUTS, help=MODEL_HELP, path=True)
    too_long: str = option(
        TOO_LONG[0],
        group=INPUTS,
        rare=True,
        help=(
            "Rows longer than the model's context: stop, leave them out, or drop the beginning of "
            "x. The same for every command."
        ),
        choices=TOO_LONG,
    )

    latent_tokens: int = option(
        1,
        group=STRATEGIES,
        rare=True,
        help=(
            "Vocabulary tokens per latent; more give each latent more capacity. Rows that are too "
            "long are counted with them, so every command gets the same number."
        ),
        minimum=1,
        maximum=64,
    )

    def inputs(self) -> dict[str, Any]:
        """The arguments of `models.inputs.open_inputs`."""
        names = (
            "model",
            "data",
            "template",
            "precision",
            "attention",
            "max_length",
            "too_long",
            "latent_tokens",
        )
        values = {name: getattr(self, name) for name in names} | self.fields
        return values | {"chat_settings": self.chat_settings}


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig(InputsConfig):
    """`twcli precompute`: the frozen model, once over the data."""

    out: str = option(group=OUTPUT, help="HDF5 file to write.", path=True)
    batch_tokens: int | None = option(
        None,
        group=RESOURCES,
        help=(
            "Maximum tokens per batch, padding included; default: what fits a CPU's cache, 65536 "
            "on a GPU."
        ),
        minimum=1,
    )
    execution: str = option(
        "auto",
        group=RESOURCES,
        rare=True,
        help=(
            "plain computes each row separately and padded; auto computes each prompt once for "
            "all its completions, without padding."
        ),
        choices=("auto", "plain"),
    )
    shard_rows: int = option(
        4096,
        group=RESOURCES,
        rare=True,
        help=(
            "Rows stored at a time; after an interruption the same command resumes after the last"
            " stored ones."
        ),
        minimum=1,
    )
    overwrite: bool = option(
        False, group=OUTPUT, help="Replace the file at --out, once the new one is complete."
    )


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig(BatchConfig, InputsConfig):
    """`twcli discover`: a latent for each record, found without labels."""

    out: str = option(
        group=OUTPUT,
        help=("names.jsonl to write; its page and its features are written next to it."),
        path=True,
    )
    latents: int | str = option(
        AUTO,
        group=STRATEGIES,
        help=("Number of latents K, or auto: choose K by how stable the clusters are."),
        minimum=2,
        maximum=1024,
        words=(AUTO,),
    )
    seed: int = option(
        0, group=STRATEGIES, help="Seed of the search.", minimum=0, maximum=2**31 - 1
    )
    overwrite: bool = option(
        False,
        group=OUTPUT,
        help="Replace the names at --out, and features of another model or data.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(InputsConfig):
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
            "Number of latents K, or auto: choose K by how stable the clusters are. Not needed "
            "with --names."
        ),
        minimum=2,
        maximum=1024,
        words=(AUTO,),
    )
    names: str | None = option(
        None,
        group=INPUTS,
        help=(
            "File that `twcli discover` wrote, edited or not: a latent for each record; null is "
            "found."
        ),
        path=True,
    )
    out: str = option(group=OUTPUT, help="Run folder to write.", path=True)

    batch_tokens: int | None = option(
        None,
        group=OPTIMISATION,
        help=(
            "Maximum tokens per batch, padding included; the K latent copies are not counted. "
            "Default: 2048, with LoRA 600, and eight records of mean length at least."
        ),
        minimum=1,
    )

    weighting: str = option(
        "mixed",
        group=LITERATURE,
        help=(
            "Weights of the token losses: token (b_t), uniform, or mixed (the sum of both terms)."
        ),
        choices=("token", "uniform", "mixed"),
    )
    uniform_weight: float = option(
        1.0,
        group=LITERATURE,
        help="Factor of the uniform term under --weighting mixed.",
        minimum=0.0,
    )
    token_weight: float = option(
        2.0,
        group=LITERATURE,
        help="Factor of the b_t-weighted term under --weighting mixed.",
        minimum=0.0,
    )
    baseline_policy: str = option(
        "frozen",
        group=LITERATURE,
        help=(
            "b_t of the original model (the file at --baseline), or of the current model at each "
            "step."
        ),
        choices=("frozen", "dynamic"),
    )
    ablation: str = option(
        "none",
        group=LITERATURE,
        help=("Subtract b_t instead of weighting with it: its mean over y, or each token's."),
        choices=("none", "scalar-baseline", "token-baseline"),
    )
    beta: float = option(
        0.1, group=LITERATURE, help="Factor of KL(posterior || router), in nats.", above=0.0
    )
    beta_warmup: float = option(
        0.0,
        group=LITERATURE,
        help=("Share of the steps, or of each cycle, over which beta rises from 0 (KL annealing)."),
        minimum=0.0,
        maximum=1.0,
    )
    beta_cycles: int = option(
        1, group=LITERATURE, help="Number of annealing cycles (cyclical KL annealing).", minimum=1
    )
    free_bits: float = option(
        0.0,
        group=LITERATURE,
        help=(
            "KL in nats per example that is not penalised (free bits), where the posterior is "
            "learned."
        ),
        minimum=0.0,
    )
    posterior_update: str = option(
        "learned",
        group=LITERATURE,
        help=(
            "How the posterior is learned: by gradient, by hard EM, or from the closed form with "
            "latents balanced over the batch (Sinkhorn)."
        ),
        choices=("learned", "hard", "balanced"),
    )
    divergence: float = option(
        0.0,
        group=LITERATURE,
        help=(
            "Factor of a reward for the b_t-weighted Jensen-Shannon divergence between the "
            "latents' next tokens, where the posterior is learned."
        ),
        minimum=0.0,
    )
    normalise: bool = option(
        False, group=LITERATURE, help="Divide each row's reconstruction by its mean b_t."
    )
    tau: float = option(
        TAU,
        group=LITERATURE,
        help="Sum of b_t in nats up to which a row is weighted uniformly.",
        minimum=0.0,
    )
    posterior: str = option(
        "shared",
        group=LITERATURE,
        help=(
            "q(z|x,y): a head on the trained model, a head on a separate copy of it, or the exact"
            " posterior."
        ),
        choices=("shared", "separate", "exact"),
    )
    warm_start: str = option(
        "centered",
        group=LITERATURE,
        help=("Posterior at the start: the clusters of the records (centered), or none."),
        choices=("centered", "none"),
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
            "150 to 2000, fewer where nothing improves any more."
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
            "Peak learning rate; default 2e-3 x min(1, 64 / hidden size), "
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
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs exclude each other; give one of them")
        if self.latents is None and self.names is None:
            raise UserError(
                "--latents is required: give a number or auto, or --names with the file of "
                "`twcli discover`"
            )
        self.each_seed()
        if self.latents == AUTO and self.names is not None:
            raise UserError("--latents auto: --names says how many; leave one of them out")
        if self.names is not None and self.warm_start == "none":
            raise UserError("--names: is a warm start, and --warm-start is none; leave one out")
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
        if self.shard and self.adapt not in (None, "full"):
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
class EvalConfig(BatchConfig, DataConfig, ComputeConfig):
    """`twcli eval`: did the posterior collapse, and does z mean a strategy?"""

    run: str = option(
        group=INPUTS,
        help="Run folder that `twcli train` wrote, or the folder of several (--seeds).",
        path=True,
    )
    strategy_field: str = option(
        "strategy", group=INPUTS, rare=True, help="Field that holds the strategy label, if any."
    )
    too_long: str | None = option(
        None,
        group=INPUTS,
        rare=True,
        help="As in `twcli train`; default: what the run was trained with.",
        choices=TOO_LONG,
    )
    judge: str | None = option(
        None,
        group=INPUTS,
        help=(
            "Who says what is right: exact, number (the last one), regex:PATTERN, "
            "reasoning_gym:TASK, cmd:COMMAND (JSON in, JSON out), or MODULE:FUNCTION with "
            "judge(x, y) -> (strategy, correct)."
        ),
    )
    judge_seconds: float = option(
        10.0,
        group=INPUTS,
        rare=True,
        help="Time limit of the judge for one completion.",
        above=0.0,
        maximum=86400.0,
    )
    model: str | None = option(
        None,
        group=INPUTS,
        rare=True,
        help="Original model for the likelihood gain; default: the one of the run.",
        path=True,
    )
    server: str | None = option(
        None,
        group=INPUTS,
        rare=True,
        help=(
            "URL of an OpenAI-compatible server that has the folder of `twcli export --to hf`: the "
            "run's completions come from there."
        ),
    )
    served_model: str | None = option(
        None,
        group=INPUTS,
        rare=True,
        help="The run's name at --server; default: the only one that is there.",
    )
    concurrency: int = option(
        CONCURRENCY,
        group=RESOURCES,
        rare=True,
        help="Requests at once to --server.",
        minimum=1,
        maximum=1000,
    )
    max_new_tokens: int | None = option(
        None,
        group=RESOURCES,
        rare=True,
        help="Longest generated completion; default: longest y of the data + 16.",
        minimum=1,
    )
    bootstrap: int = option(
        1000, group=OUTPUT, rare=True, help="Resamples for each 95 % interval.", minimum=10
    )
    samples: int | None = option(
        None,
        group=OUTPUT,
        help=(
            "Also draw so many completions of each prompt from the original model and from the "
            "run, in three ways, and compare them: pass@k, samples saved, diversity."
        ),
        minimum=1,
        maximum=1024,
    )
    temperature: float = option(
        1.0,
        group=OUTPUT,
        rare=True,
        help="Temperature of --samples; the original model's is the best of a few around it.",
        minimum=0.01,
        maximum=100.0,
    )
    seed: int = option(
        0,
        group=OUTPUT,
        rare=True,
        help="Seed of the split into halves and of the resamples.",
        minimum=0,
        maximum=2**31 - 1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.served_model is not None and self.server is None:
            raise UserError("--served-model: is a name at --server; give both or leave it out")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(BatchConfig, TemplateConfig, ComputeConfig):
    """`twcli sample`: completions of the frozen model, of a trained run by latent, or of a model
    behind a server.
    """

    model: str | None = option(
        None,
        group=INPUTS,
        help="Entangled model to sample from; with --server, its name there.",
        path=True,
    )
    run: str | None = option(None, group=INPUTS, help="Run folder to sample from.", path=True)
    server: str | None = option(
        None,
        group=INPUTS,
        help=(
            "URL of an OpenAI-compatible server that draws: by its own chat template, or raw "
            "prompts where --template is a file."
        ),
    )
    concurrency: int = option(
        CONCURRENCY,
        group=RESOURCES,
        rare=True,
        help="Requests at once to --server.",
        minimum=1,
        maximum=1000,
    )
    data: str | None = option(
        None, group=INPUTS, help="Records whose prompts to complete.", path=True
    )
    x: str | None = option(None, group=INPUTS, help="One prompt to complete.")
    interactive: bool = option(
        False,
        group=INPUTS,
        help=(
            "Read prompts from the terminal, one per line, and show the completion of every latent."
        ),
    )
    format: str = option(AUTO, group=INPUTS, rare=True, help=FORMAT_HELP, choices=FORMATS)
    x_field: str = option("x", group=INPUTS, rare=True, help="Field that holds the prompt.")
    latent: str | None = option(
        None,
        group=STRATEGIES,
        help=(
            "Latent to use: a number, `all`, or `router` (default). Needs --run, or --server with "
            "an exported model: there one latent, by number or name."
        ),
    )
    n: int = option(
        1,
        group=STRATEGIES,
        help="Completions per prompt, and per latent with --latent all.",
        minimum=1,
    )
    temperature: float = option(
        1.0, group=STRATEGIES, help="Sampling temperature; 0 is greedy.", minimum=0.0
    )
    max_new_tokens: int | None = option(
        None,
        group=STRATEGIES,
        help=("Maximum tokens of a completion; default: as many as the context permits."),
        minimum=1,
    )
    seed: int = option(
        0, group=STRATEGIES, help="Seed of the sampling.", minimum=0, maximum=2**31 - 1
    )
    out: str | None = option(
        None, group=OUTPUT, help="JSONL file to write; default: standard output.", path=True
    )
    overwrite: bool = option(False, group=OUTPUT, help="Replace the file at --out.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server is not None:
            self._check_server()
        elif (self.model is None) == (self.run is None):
            raise UserError("give one of --model (original model) and --run (trained run)")
        if (self.data is not None) + (self.x is not None) + self.interactive != 1:
            raise UserError(
                "give one of --data (records), --x (one prompt) and --interactive (prompts that "
                "you type)"
            )
        if self.run is not None and self.template != AUTO:
            raise UserError("--template goes with --model; a run has its own")
        if self.run is not None and self.chat_template_kwargs is not None:
            raise UserError("--chat-template-kwargs goes with --model; a run has its own")
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
        if self.model is not None and self.latent is not None and self.server is None:
            raise UserError("--latent needs --run; the original model has no latents")
        if (
            self.latent is not None
            and self.server is None
            and self.latent not in ("all", "router")
            and not self.latent.isdecimal()
        ):
            raise UserError(f"--latent: '{self.latent}' is not a number, 'all' or 'router'")

    def _check_server(self) -> None:
        if self.run is not None:
            raise UserError(
                "--server: samples from a model that is served; `twcli export` makes one of a run"
            )
        if self.model is None:
            raise UserError("--server: give --model with the model's name there")
        if self.interactive:
            raise UserError("--interactive: needs --run or --model of this machine, not --server")
        if self.latent in ("all", "router"):
            raise UserError(
                f"--latent {self.latent}: a server takes one latent, by number or name; run the "
                "command once for each"
            )
        if self.template == "chat":
            raise UserError(
                "--template chat: a server has its own chat template and uses it; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """`twcli export`: a trained run as a model that runs without this package."""

    retired: ClassVar[dict[str, str]] = {"precision": "is --dtype here"}

    run: str = option(group=INPUTS, help="Run folder that `twcli train` wrote.", path=True)
    to: str = option(
        group=OUTPUT,
        help=(
            "Form: hf, a merged folder for transformers and most servers; adapter, for peft on the "
            "base model; gguf, for llama.cpp."
        ),
        choices=EXPORTS,
    )
    out: str = option(group=OUTPUT, help="Folder to write.", path=True)
    name: tuple[str, ...] = option(
        (),
        group=STRATEGIES,
        help=(
            "Name of a latent, as 0=terse; then latent='terse' works as latent=0 does. Default: "
            "the names in the file that the run was trained with."
        ),
    )
    latent: str | None = option(
        None,
        group=STRATEGIES,
        help=(
            "Latent where a call names none: a number or a name; default: the most frequent one."
        ),
    )
    dtype: str = option(
        "fp32", group=OUTPUT, help="Precision of the weights that are written.", choices=PRECISIONS
    )
    device: str = option(
        "auto", group=RESOURCES, help="Device on which the export is checked.", choices=DEVICES
    )
    push_to_hub: str | None = option(
        None,
        group=OUTPUT,
        help="Also upload the folder to this Hugging Face repository, OWNER/NAME.",
    )
    overwrite: bool = option(False, group=OUTPUT, help="Replace what is at --out.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to == "adapter" and self.dtype != "fp32":
            raise UserError(
                "--to adapter: its weights are written as they were trained; leave --dtype out"
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
