"""Options of `twcli discover`."""

from __future__ import annotations

from dataclasses import dataclass

from twcli.config.inputs import AUTO, BatchConfig, InputsConfig
from twcli.config.options import OUTPUT, STRATEGIES, option


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
    names: str | None = option(
        None,
        group=STRATEGIES,
        help=(
            "Names of these records in which some are given, null for the others: those are named "
            "after them. Some for each latent say which distinction is meant."
        ),
        path=True,
    )
    seed: int = option(
        0, group=STRATEGIES, help="Seed of the search.", minimum=0, maximum=2**31 - 1
    )
    overwrite: bool = option(
        False,
        group=OUTPUT,
        help="Replace the names at --out, and features of another model or data.",
    )
