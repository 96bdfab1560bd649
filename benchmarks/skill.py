"""How well an entangled model carries out each strategy once it has begun it: what its
latents can reach at best.

    python benchmarks/skill.py linear_equations --model entangled --data test.jsonl

For each distinct prompt and each strategy the model reads the strategy's trace up to where no other
strategy's continues alike, and writes the rest (greedy). Printed is the share of prompts for which
the judge still sees the strategy, and the mean over strategies. `alignment.generation_one_to_one`
of a run that was trained from this model is not expected to be much above that mean.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.flags import Parser
from examples.tasks import TASKS
from examples.tasks.task import Task
from twcli.data.dataset import read_examples
from twcli.errors import UserError
from twcli.models import loading, runtime
from twcli.models.generation import generate

SPARE_TOKENS = 16  # that the model may write beyond the longest trace
BATCH_TOKENS = 16384


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="skill.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, metavar="F.jsonl")
    options = parser.parse_args(argv)
    try:
        shares = skill(
            TASKS[options.task],
            options.model,
            list(dict.fromkeys(e.x for e in read_examples(options.data))),
        )
    except (UserError, ValueError) as error:
        # the latter from a task that is given another one's prompts
        parser.error(str(error))
    for name, share in shares.items():
        print(f"{name} {share:.3f}")
    print(f"mean {mean(shares.values()):.3f}")


def skill(task: Task, model_path: str, xs: Sequence[str]) -> dict[str, float]:
    """Strategy -> share of the prompts on which the model, made to begin
    it, writes it to its end.
    """
    runtime.quiet_transformers()
    model, encoder = loading.load_frozen(model_path)
    begun = [(x, name, beginning) for x in xs for name, beginning in beginnings(task, x).items()]
    traces = [trace.split() for x in xs for trace in task.traces(x).values()]
    prompts = [
        encoder.prompt(x) + encoder.tokenizer(y, add_special_tokens=False)["input_ids"]
        for x, _, y in begun
    ]
    texts, _ = generate(
        model,
        encoder,
        prompts,
        max_new_tokens=max(map(len, traces)) + SPARE_TOKENS,
        temperature=0.0,
        seed=0,
        batch_tokens=BATCH_TOKENS,
    )
    right: dict[str, list[bool]] = {name: [] for name in task.strategies}
    for (x, name, beginning), text in zip(begun, texts, strict=True):
        right[name].append(task.judge(x, f"{beginning} {text}")[0] == name)
    return {name: mean(hits) for name, hits in right.items()}


def beginnings(task: Task, x: str) -> dict[str, str]:
    """Strategy -> its trace up to the token that tells it from all others; the whole trace where
    another one only continues longer.
    """
    traces = {name: trace.split() for name, trace in task.traces(x).items()}
    return {
        name: " ".join(
            trace[: 1 + max(_alike(trace, other) for key, other in traces.items() if key != name)]
        )
        for name, trace in traces.items()
    }


def _alike(one: list[str], other: list[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


if __name__ == "__main__":
    main()
