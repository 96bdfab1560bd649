"""The README's picture: one question, answered by a run under each of its latents.

    python benchmarks/picture.py --run RUN --x QUESTION [--name 0=list ...] --out docs/latents

It writes OUT-light.svg and OUT-dark.svg. The answers are what `twcli sample --latent all
--temperature 0` gives, uncut. `make picture` makes the run as well.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.terminal_theme import TerminalTheme
from rich.text import Text

WIDTH = 88  # columns
ACCENTS = ("blue", "green", "magenta", "yellow", "cyan", "red")
LIGHT = TerminalTheme(
    (255, 255, 255),
    (36, 41, 47),
    [
        (36, 41, 47),
        (207, 34, 46),
        (17, 99, 41),
        (125, 78, 0),
        (9, 105, 218),
        (130, 80, 223),
        (27, 124, 131),
        (87, 96, 106),
    ],
)
DARK = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [
        (230, 237, 243),
        (255, 123, 114),
        (63, 185, 80),
        (210, 153, 34),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (139, 148, 158),
    ],
)
# rich's own form loads a font from the network; a picture in a README must not
FORM = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" role="img"
 xmlns="http://www.w3.org/2000/svg" aria-label="One question, answered under each latent">
<style>
.{unique_id}-matrix {{
 font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
 font-size: {char_height}px; line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def answers(run: str, x: str, tokens: int) -> list[dict]:
    """What the run writes under each latent, greedily."""
    command = [sys.executable, "-m", "twcli", "sample", "--run", run, "--x", x, "--latent", "all"]
    command += ["--temperature", "0", "--max-new-tokens", str(tokens)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def draw(x: str, samples: list[dict], names: dict[int, str], theme: TerminalTheme) -> str:
    """The picture as SVG."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Padding(Text(x, style="bold"), (1, 2)))
    for sample in samples:
        k = sample["latent"]
        name = f"  {names[k]}" if k in names else ""
        accent = ACCENTS[k % len(ACCENTS)]
        console.print(Padding(Text(f"latent {k}{name}", style=f"bold {accent}"), (0, 2)))
        console.print(Padding(Text(sample["y"].strip()), (0, 2, 1, 4)))
    return console.export_svg(title="", theme=theme, code_format=FORM, unique_id="latents")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--x", required=True, help="the question")
    parser.add_argument("--name", action="append", default=[], help="K=NAME, of a latent")
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--out", required=True, help="the files' path without -light.svg")
    args = parser.parse_args()
    names = {int(k): name for k, _, name in (pair.partition("=") for pair in args.name)}
    samples = answers(args.run, args.x, args.max_new_tokens)
    for word, theme in (("light", LIGHT), ("dark", DARK)):
        picture = draw(args.x, samples, names, theme)
        Path(f"{args.out}-{word}.svg").write_text(picture)
    for sample in samples:
        print(json.dumps(sample, ensure_ascii=False))


if __name__ == "__main__":
    main()
