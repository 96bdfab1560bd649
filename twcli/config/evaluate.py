"""Options of `twcli eval`."""

from __future__ import annotations

from dataclasses import dataclass

from twcli.config.inputs import TOO_LONG, BatchConfig, ComputeConfig, DataConfig, ServerConfig
from twcli.config.options import INPUTS, OUTPUT, RESOURCES, option
from twcli.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ServerConfig, BatchConfig, DataConfig, ComputeConfig):
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
            "How completions are judged: exact (the whole answer), number (the last one), "
            "regex:PATTERN, reasoning_gym:TASK, cmd:COMMAND (JSON in, JSON out), or "
            "MODULE:FUNCTION with judge(x, y) -> (strategy, correct)."
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
            "Also draw N completions of each prompt from the original model and N from the run, "
            "with its latents chosen in three ways (evenly, in proportion to the router, drawn "
            "from it), and compare pass@k, samples saved and diversity."
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
        named = self.served_model is not None
        if named and self.server is None:
            raise UserError("--served-model: is a name at --server; give both or leave it out")
