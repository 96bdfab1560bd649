"""A command's configuration from the command line: its fields as click options, a
YAML file below the flags.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import click

from twcli.config.options import GROUPS, OUTPUT, Config, flag_of, read_yaml

WIDEST_CHOICES = 60  # characters; more are listed behind the help sentence, which is wrapped


class GroupedOption(click.Option):
    """An option that help shows in a group.

    Attributes:
        group: the group's name.
        rare: whether `--help` leaves it out and only `--help-all` shows it.
    """

    def __init__(
        self, *names: Any, group: str = OUTPUT, rare: bool = False, **settings: Any
    ) -> None:
        kind = settings.get("type")
        if isinstance(kind, click.Choice) and len("|".join(kind.choices)) > WIDEST_CHOICES:
            settings["metavar"] = "NAME"
            settings["help"] += f"  [one of {', '.join(kind.choices)}]"
        super().__init__(*names, **settings)
        self.group = group
        self.rare = rare


class GroupedCommand(click.Command):
    """A command whose `--help` shows what is often needed, in groups, and `--help-all` the rest."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        """The command's parameters, then `--help` and `--help-all`."""
        help_all = click.Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=self._show_all,
            help="Show every option and exit.",
        )
        rare = any(getattr(param, "rare", False) for param in self.params)
        return [*super().get_params(context), *([help_all] if rare else [])]

    def _show_all(self, context: click.Context, _parameter: click.Parameter, given: bool) -> None:
        """Prints help with every option, and ends."""
        if given and not context.resilient_parsing:
            context.meta["twcli.help_all"] = True
            click.echo(context.get_help(), color=context.color)
            context.exit()

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a section a group."""
        everything = context.meta.get("twcli.help_all", False)
        shown: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if not isinstance(parameter, click.Option) or record is None:
                continue
            if everything or not getattr(parameter, "rare", False):
                shown[getattr(parameter, "group", OUTPUT)].append(record)
        for group, records in shown.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


def config_options(kind: type[Config]) -> Callable[[Any], Any]:
    """Click options from a config's fields, required and own ones first; values are
    checked by the config itself.
    """
    own = inspect.get_annotations(kind)
    fields = sorted(
        dataclasses.fields(kind),
        key=lambda f: (
            GROUPS.index(f.metadata["group"]),
            f.default is not dataclasses.MISSING,
            f.name not in own,
        ),
    )

    def decorate(function: Any) -> Any:
        function = click.option(
            "--quiet",
            cls=GroupedOption,
            rare=True,
            is_flag=True,
            help="Print errors and results only.",
        )(function)
        function = click.option(
            "--config",
            "config_file",
            metavar="FILE",
            help="YAML file with the options' names as keys; an option given here wins over it.",
        )(function)
        for field in reversed(fields):
            function = _option(kind, field)(function)
        function.retired = kind.retired
        return function

    return decorate


class NumberOrWord(click.ParamType):  # type: ignore[type-arg]  # none before click 8.4
    """A whole number, or one of a few words."""

    name = "integer"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """The number or the word; an error that names both where it is neither."""
        try:
            if value in self.words:
                return value
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is no number, and not {' or '.join(self.words)}.")


def _option(kind: type[Config], field: dataclasses.Field[Any]) -> Any:
    """The click option of a configuration's field: its type, choices and group."""
    required = field.default is dataclasses.MISSING
    plain = kind.kind(field.name)
    settings: dict[str, Any] = {
        "cls": GroupedOption,
        "group": field.metadata["group"],
        "rare": field.metadata["rare"],
        "help": field.metadata["help"] + ("  [required]" if required else ""),
    }
    if plain is tuple:
        settings["help"] += "  May be given several times."
        return click.option(
            flag_of(field.name), field.name, multiple=True, metavar="TEXT", **settings
        )
    if plain is bool:
        return click.option(flag_of(field.name), is_flag=True, default=None, **settings)
    if "choices" in field.metadata:
        settings["type"] = click.Choice(list(field.metadata["choices"]))
    else:
        path = field.metadata.get("path")  # of click's type, so that the shell completes it
        words = field.metadata.get("words", ())
        if path:
            settings["type"] = click.Path()
        elif words:
            settings["type"] = NumberOrWord(words)
        else:
            settings["type"] = plain
        settings["metavar"] = "|".join(
            [{int: "N", float: "NUMBER"}.get(plain, "PATH" if path else "TEXT"), *words]
        )
    if (least := field.metadata.get("minimum", 0)) > 1:
        settings["help"] += f"  [at least {least}]"
    if not required and field.default is not None:
        settings["help"] += f"  [default: {field.default}]"
    return click.option(flag_of(field.name), field.name, default=None, **settings)


def resolve(kind: type[Config], flags: dict[str, Any], config_file: str | None) -> Any:
    """Defaults, then the file, then the flags that were given."""
    settings = _in_file(config_file) | _given(flags)
    return kind.from_mapping(settings, config_file or "options")


def origins(flags: dict[str, Any], config_file: str | None) -> dict[str, str]:
    """Where each setting that is no default came from, by name."""
    found = {}
    if config_file is not None:
        for name in _in_file(config_file):
            found[name] = config_file
    for name in _given(flags):
        found[name] = "given"
    return found


def _in_file(config_file: str | None) -> dict[str, Any]:
    """The values of `--config`, by the name of their field; `-` and `_` in a key are the same.
    Raises UserError for a file that is no mapping.
    """
    if config_file is None:
        return {}
    values = {}
    for key, value in read_yaml(config_file).items():
        name = str(key).replace("-", "_")
        values[name] = value
    return values


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """The options that were given on the command line."""
    given = {}
    for name, value in flags.items():
        if value not in (None, ()):
            given[name] = value
    return given
