"""Options of `twcli sample`."""

from __future__ import annotations

from dataclasses import dataclass

from twcli.config.inputs import (
    AUTO,
    EMPTY,
    EMPTY_HELP,
    FORMAT_HELP,
    FORMATS,
    BatchConfig,
    ComputeConfig,
    ServerConfig,
    TemplateConfig,
)
from twcli.config.options import INPUTS, OUTPUT, STRATEGIES, option
from twcli.errors import UserError

LEAST_TEMPERATURE = 1e-3


@dataclass(frozen=True, kw_only=True)
class SampleConfig(ServerConfig, BatchConfig, TemplateConfig, ComputeConfig):
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
            "URL of an OpenAI-compatible server to sample from: with its own chat template, or "
            "with raw prompts where --template is a file."
        ),
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
    empty: str = option(EMPTY[0], group=INPUTS, rare=True, help=EMPTY_HELP, choices=EMPTY)
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
        if self.x is not None and not self.x.strip():
            raise UserError("--x: is empty; give a prompt")
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
        """What a server draws agrees with the other options."""
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
