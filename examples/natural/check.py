"""Check each judge on 2,000 fresh completions of each strategy.

python -m examples.natural.check [SEED]
"""

import random
import sys

from . import make

COUNT, LEAST, FIRST_WORDS = 2000, 0.995, 5


def check(task: str, strategy: str, seed: int) -> bool:
    """Print the rates of one strategy; whether they all suffice."""
    module, rng = make.load(task), random.Random(f"check {seed}")
    seen = wrong = words = 0
    first, texts = set(), set()
    for _ in range(COUNT):
        x, slots = module.make_prompt(rng)
        y = module.write(strategy, slots, rng)
        found, right = module.judge(x, y)
        seen += found == strategy
        wrong += slots.get("answer") is not None and right is not True
        first.add(y.split()[0])
        texts.add(y)
        words += len(y.split())
    print(
        f"{task} {strategy}: recognised {seen / COUNT:.4f}, wrong answers {wrong}, "
        f"first words {len(first)}, distinct {len(texts)}, words a text {words / COUNT:.1f}"
    )
    return seen >= LEAST * COUNT and not wrong and len(first) >= FIRST_WORDS


def main() -> None:
    """Check all tasks; the exit status tells whether all strategies suffice."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    done = [check(task, name, seed) for task in make.TASKS for name in make.load(task).STRATEGIES]
    sys.exit(0 if all(done) else 1)


if __name__ == "__main__":
    main()
