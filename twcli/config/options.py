"""Options as fields of a dataclass: help, choices, bounds and check of each in one place; a
configuration from and to YAML.

`from_mapping` reads what `to_mapping` wrote.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from twcli.errors import UserError

MAX_CONFIG_BYTES = 256 * 2**10


# Groups of `--help`, in its order; the last one is for research and shown by `--help-all` alone.
INPUTS, STRATEGIES, OPTIMISATION = "Inputs", "Strategies", "Optimisation"
RESOURCES, OUTPUT, LITERATURE = "Resources", "Output", "For comparison with the literature"
GROUPS = (INPUTS, STRATEGIES, OPTIMISATION, RESOURCES, OUTPUT, LITERATURE)


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    group: str = OUTPUT,
    rare: bool = False,
    **metadata: Any,
) -> Any:
    """A dataclass field that is also a command-line option. A field of type `tuple[str, ...]` is
    an option that may be given several times.

    Args:
        group: the one of `GROUPS` that help shows it in.
        rare: `--help` leaves it out, `--help-all` shows it.
        metadata: `choices`, `minimum`, `above`, `maximum`, `path`; `words`, values that a number's
            option takes as well.
    """
    shown = {"help": help, "group": group, "rare": rare or group == LITERATURE}
    return dataclasses.field(default=default, metadata={**shown, **metadata})


def flag_of(name: str) -> str:
    """The option of a field."""
    if name == "n":
        return "-n"
    return "--" + name.replace("_", "-")


def check_characters(text: str, where: str) -> None:
    """Raises UserError where a text holds what neither a tokenizer nor a file name can take."""
    if "\0" in text:
        raise UserError(f"{where} holds a NUL character; remove it")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds half of a surrogate pair; write real characters") from error


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every command's configuration shares: validation by field
    metadata and a JSON round trip.

    Attributes:
        retired: names of options that earlier versions had, and what to do instead.
    """

    retired: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        own = type(self)
        for field in dataclasses.fields(self):
            name = field.name
            value = getattr(self, name)
            kind = own.kind(name)
            _check_field(field, value, kind)

    @classmethod
    def kind(cls, name: str) -> type:
        """The plain type of a field (`int | None` gives `int`, `tuple[str, ...]` gives `tuple`)."""
        hint: Any = typing.get_type_hints(cls)[name]
        if hint == tuple[str, ...]:
            return tuple
        if isinstance(hint, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        return typing.cast(type, hint)

    @classmethod
    def from_mapping(cls, values: dict[str, Any], source: str) -> Self:
        """Builds and validates; keys may use `-` or `_`.

        Raises:
            UserError: an unknown key (named with `source`) or a value outside its field's bounds.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        clean = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name in cls.retired:
                raise UserError(f"{source}: {flag_of(name)} {cls.retired[name]}")
            if name not in known:
                raise UserError(
                    f"{source}: unknown key '{str(key)[:100]}'; known keys: "
                    f"{', '.join(sorted(known))}"
                )
            clean[name] = _as_from_a_flag(value, cls.kind(name))
        try:
            return cls(**clean)
        except TypeError as error:
            missing = [
                f.name
                for f in dataclasses.fields(cls)
                if f.default is dataclasses.MISSING and f.name not in clean
            ]
            if not missing:
                raise
            raise UserError(f"{source}: {flag_of(missing[0])} is required") from error

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON and YAML types only."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                value = list(value)
            values[field.name] = value
        return values

    def changed(self) -> dict[str, Any]:
        """As `to_mapping`, of the settings that are not at their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in self.to_mapping().items()
            if getattr(self, name) != defaults[name]
        }


def _shown(value: Any) -> str:
    """A few lines of YAML can stand for gigabytes of text, or for a number
    that Python refuses to spell.
    """
    try:
        return reprlib.repr(value)[:200]
    except ValueError:
        return f"a huge {type(value).__name__}"


def _as_from_a_flag(value: Any, kind: type) -> Any:
    """YAML takes `1e-3` for text and the 2 of `latent: 2` for a number; a flag would not."""
    try:
        if kind is float and isinstance(value, str):
            return float(value)
        if kind is str and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if kind is tuple and isinstance(value, list | str):
            if isinstance(value, str):
                return (value,)
            return tuple(value)
    except ValueError:  # no number, or one that Python refuses to spell: the check says so
        pass
    return value


def _check_field(field: dataclasses.Field[Any], value: Any, kind: type) -> None:
    """Raises UserError where a value is not of its field's type, choices and bounds.

    Args:
        kind: the plain type, as of `Config.kind`.
    """
    metadata = field.metadata
    flag = flag_of(field.name)
    if value is None:
        if field.default is not None:
            raise UserError(f"{flag}: is empty; give a value or leave the key out")
        return
    if value in metadata.get("words", ()):
        return
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{flag}: the number is too large")
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str):
            check_characters(text, flag)
        elif isinstance(value, tuple):
            raise UserError(f"{flag}: {_shown(text)} is not of type str")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{flag}: {_shown(value)} is not of type {kind.__name__}")
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{flag}: {_shown(value)} is not one of {', '.join(choices)}")
    if kind in (int, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"{flag}: {value} is not a finite number")
        if "minimum" in metadata and value < metadata["minimum"]:
            raise UserError(f"{flag}: {value} is too small; give at least {metadata['minimum']}")
        if "above" in metadata and value <= metadata["above"]:
            raise UserError(f"{flag}: {value} is too small; give more than {metadata['above']}")
        if "maximum" in metadata and value > metadata["maximum"]:
            raise UserError(f"{flag}: {value} is too large; give at most {metadata['maximum']}")


def read_yaml(path: str) -> dict[str, Any]:
    """Reads a YAML mapping with the safe loader.

    Raises:
        UserError: no such file, too large, not YAML, or not a mapping of
            names to values, each once.
    """
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise UserError(
                f"{path}: is larger than {MAX_CONFIG_BYTES >> 10} KiB; a configuration is a few "
                "lines"
            )
        loader = yaml.SafeLoader(data.decode("utf-8"))
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            _check_keys(
                [
                    (str(key.value), key.start_mark.line + 1)
                    for key, _ in node.value
                    if isinstance(key, yaml.ScalarNode)
                ],
                path,
            )
        values = None if node is None else loader.construct_document(node)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        if mark:
            where = f"{path}:{mark.line + 1}"
        else:
            where = path
        raise UserError(
            f"{where}: not valid YAML: {getattr(error, 'problem', None) or 'cannot be parsed'}"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of option names to values")
    return values


def _check_keys(keys: Sequence[tuple[str, int]], path: str) -> None:
    """Of two equal keys the loader would keep the last in silence."""
    seen = set()
    for key, line in keys:
        name = key.replace("-", "_")
        if name in seen:
            raise UserError(f"{path}:{line}: '{key[:100]}' is given twice; leave one out")
        seen.add(name)


def to_yaml(config: Config) -> str:
    """The text of a file that `--config` takes."""
    import yaml

    return yaml.safe_dump(config.to_mapping(), sort_keys=False, allow_unicode=True)
