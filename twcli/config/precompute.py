"""Options of `twcli precompute`."""

from __future__ import annotations

from dataclasses import dataclass

from twcli.config.inputs import InputsConfig
from twcli.config.options import OUTPUT, RESOURCES, option


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
