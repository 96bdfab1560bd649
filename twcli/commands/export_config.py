"""Options of `twcli export`. They are beside the forms that `--to` names and not in `config/`: so a
form is added in one file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from twcli.commands.export_forms import FORMS
from twcli.config.inputs import DEVICES, PRECISIONS
from twcli.config.options import INPUTS, OUTPUT, RESOURCES, STRATEGIES, Config, option
from twcli.errors import UserError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """`twcli export`: a trained run as a model that runs without this package."""

    retired: ClassVar[dict[str, str]] = {"precision": "is --dtype here"}

    run: str = option(group=INPUTS, help="Run folder that `twcli train` wrote.", path=True)
    to: str = option(
        group=OUTPUT,
        help="Output format: "
        + "; ".join(f"{name}, {form.help}" for name, form in FORMS.items())
        + ".",
        choices=FORMS,
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
        help=("Default latent of the export, a number or a name; default: the most frequent one."),
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
        form = FORMS[self.to]
        if self.dtype not in form.dtypes:
            raise UserError(
                f"--to {self.to}: its weights are written as they were trained; leave --dtype out"
            )
        repository = self.push_to_hub
        if repository is not None and not REPOSITORY.fullmatch(repository):
            raise UserError(f"--push-to-hub: '{repository}' is not OWNER/NAME")

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
            latent = int(number)
            before = found.setdefault(latent, name)
            if before != name:
                raise UserError(f"--name {text}: latent {latent} has two names; leave one out")
        return found
