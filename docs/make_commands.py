"""Writes docs/reference/commands.md from the commands themselves.

python docs/make_commands.py            writes it
python docs/make_commands.py --check    exits with 1 where it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from twcli.cli.main import main
from twcli.config.options import GROUPS, OUTPUT

PAGE = Path(__file__).parent / "reference" / "commands.md"
HEAD = """# Commands

Made by `python docs/make_commands.py` from the commands themselves. `twcli COMMAND --help` shows
the options that are often needed, `--help-all` all of them.

Exit codes: 0 done, 1 the work failed, 2 the call or an input is wrong. Results go to standard
output, all else to standard error, which `--quiet` silences where it is taken, but for errors.
`NO_COLOR` is obeyed. Where a `--config FILE.yaml` is taken, its keys are the names of the options
above it, without the dashes before them; a flag wins over the file.
"""


def reference() -> str:
    """The page: a section a command, a row an option."""
    parts = [HEAD]
    context = click.Context(main, info_name="twcli")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        arguments = [
            p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)
        ]
        parts.append(f"\n## twcli {' '.join([name, *arguments])}\n\n{command.help}\n")
        options = [option for option in command.params if isinstance(option, click.Option)]
        for group in GROUPS:
            rows = [
                _row(option, context)
                for option in options
                if getattr(option, "group", OUTPUT) == group
            ]
            if rows:
                parts.append(f"\n| {group} | |\n| --- | --- |\n{''.join(rows)}")
    return "".join(parts)


def _row(option: click.Option, context: click.Context) -> str:
    value = "" if option.is_flag else " " + option.make_metavar(context)
    cells = (f"`{', '.join(option.opts)}{value}`", option.help or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != reference())
    PAGE.write_text(reference(), encoding="utf-8")
