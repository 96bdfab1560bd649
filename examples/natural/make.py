"""Write a JSONL file of prompts and completions of one task.

    python -m examples.natural.make sums --prompts 150 --completions 4 --draw random \\
      --seed 0 --out train.jsonl
    python -m examples.natural.make sums --prompts 30 --completions 4 --seed 1 \\
      --exclude train.jsonl --out test.jsonl
"""

import argparse
import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

TASKS = ("sums", "advice", "schedule", "dinner", "mixed")
SHARES = {3: (60, 30, 10), 4: (55, 25, 15, 5), 5: (50, 25, 15, 7, 3)}
TRIES = 1000


def load(task: str) -> ModuleType:
    """The module of a task, by its name."""
    return importlib.import_module(f"examples.natural.{task}")


def draw_strategies(names: tuple[str, ...], count: int, draw: str, rng: random.Random) -> list[str]:
    """The strategies of the `count` completions of one prompt."""
    if draw == "distinct":
        if count > len(names):
            raise ValueError(f"distinct draws need at most {len(names)} completions a prompt")
        return rng.sample(names, count)
    weights = SHARES[len(names)] if draw == "skewed" else None
    return rng.choices(names, weights, k=count)


def rows(
    task: str, prompts: int, completions: int, draw: str, seed: int, exclude: set[str] = frozenset()
) -> Iterator[dict]:
    """The rows of a file: `completions` rows for each of `prompts` distinct prompts."""
    module, rng = load(task), random.Random(f"{task} {seed}")
    seen = set(exclude)
    for _ in range(prompts):
        for _ in range(TRIES):
            x, slots = module.make_prompt(rng)
            if x not in seen:
                break
        else:
            raise ValueError(f"task {task} has too few prompts for {prompts} distinct ones")
        seen.add(x)
        written: set[str] = set()
        for strategy in draw_strategies(module.STRATEGIES, completions, draw, rng):
            for _ in range(TRIES):
                y = module.write(strategy, slots, rng)
                if y not in written:
                    break
            else:
                raise ValueError(f"task {task} has too few wordings of {strategy}")
            written.add(y)
            row = {"x": x, "y": y, "strategy": strategy}
            if slots.get("answer") is not None:
                row["answer"] = slots["answer"]
            yield row


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--prompts", type=int, required=True, help="number of distinct prompts")
    parser.add_argument("--completions", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--draw", choices=("random", "distinct", "skewed"), default="random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    parser.add_argument("--exclude", type=Path, help="JSONL file whose prompts must not occur")
    args = parser.parse_args(argv)
    exclude: set[str] = set()
    if args.exclude:
        lines = args.exclude.read_text(encoding="utf-8").splitlines()
        exclude = {json.loads(line)["x"] for line in lines if line.strip()}
    try:
        made = list(rows(args.task, args.prompts, args.completions, args.draw, args.seed, exclude))
    except ValueError as error:
        parser.error(str(error))
    with args.out.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)


if __name__ == "__main__":
    main()
