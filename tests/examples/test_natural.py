"""Checks of the natural-language tasks: wordings, judges, draws and files."""

import collections
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from examples.natural import make

COUNT = 300  # draws per strategy


def strategies() -> list[tuple[str, str]]:
    """All pairs of a task and one of its strategies."""
    return [(task, name) for task in make.TASKS for name in make.load(task).STRATEGIES]


def drawn(task: str, strategy: str, count: int = COUNT) -> list[tuple[str, dict, str]]:
    """So many prompts, slots and completions of one strategy."""
    module, rng = make.load(task), random.Random(7)
    made = [module.make_prompt(rng) for _ in range(count)]
    return [(x, slots, module.write(strategy, slots, rng)) for x, slots in made]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "strategy"), strategies())
def test_judge_recognises_strategy_and_answer(task: str, strategy: str) -> None:
    module, right = make.load(task), 0
    for x, slots, y in drawn(task, strategy):
        found, answer_right = module.judge(x, y)
        right += found == strategy
        assert answer_right is (None if slots.get("answer") is None else True), (x, y)
    assert right >= 0.995 * COUNT


@pytest.mark.parametrize(("task", "strategy"), strategies())
def test_wordings_vary(task: str, strategy: str) -> None:
    ys = [y for _, _, y in drawn(task, strategy)]
    assert len({y.split()[0] for y in ys}) >= 5
    assert len(set(ys)) >= 0.9 * COUNT
    assert not any(set("[]{}|") & set(y) for y in ys)
    assert all(4 <= len(y.split()) <= 50 for y in ys)


@pytest.mark.parametrize("task", ["sums", "schedule", "mixed"])
def test_judge_sees_a_wrong_answer(task: str) -> None:
    module = make.load(task)
    for strategy in module.STRATEGIES:
        for x, slots, y in drawn(task, strategy, 60):
            if (answer := slots.get("answer")) is not None:
                wrong = y.replace(str(answer), "23:59" if ":" in str(answer) else "997")
                assert module.judge(x, wrong)[1] is False


@pytest.mark.parametrize("task", make.TASKS)
def test_judge_sees_nothing_in_empty_text(task: str) -> None:
    module = make.load(task)
    x, _ = module.make_prompt(random.Random(0))
    assert module.judge(x, "")[0] is None
    assert module.judge(x, "Blue clouds drift over a quiet lake at dusk.")[0] is None


@pytest.mark.parametrize("task", make.TASKS)
def test_rows_repeat_by_seed_and_are_distinct(task: str) -> None:
    made = list(make.rows(task, 40, 6, "random", 3))
    assert made == list(make.rows(task, 40, 6, "random", 3))
    assert made != list(make.rows(task, 40, 6, "random", 4))
    assert len({(row["x"], row["y"]) for row in made}) == len(made) == 240
    assert len({row["x"] for row in made}) == 40
    for start in range(0, 240, 6):
        assert len({row["x"] for row in made[start : start + 6]}) == 1


@pytest.mark.parametrize("task", make.TASKS)
@pytest.mark.parametrize("draw", ["random", "skewed"])
def test_shares_of_the_draws(task: str, draw: str) -> None:
    names, count = make.load(task).STRATEGIES, 2000
    shares = make.SHARES[len(names)] if draw == "skewed" else [100 / len(names)] * len(names)
    prompts = 500
    made = make.rows(task, prompts, count // prompts, draw, 0)
    found = collections.Counter(row["strategy"] for row in made)
    for name, share in zip(names, shares, strict=True):
        assert abs(found[name] / count - share / 100) < 0.04


@pytest.mark.parametrize("task", make.TASKS)
def test_distinct_draws(task: str) -> None:
    names = make.load(task).STRATEGIES
    made = list(make.rows(task, 20, len(names), "distinct", 0))
    for start in range(0, len(made), len(names)):
        assert {row["strategy"] for row in made[start : start + len(names)]} == set(names)
    with pytest.raises(ValueError, match="at most"):
        list(make.rows(task, 1, len(names) + 1, "distinct", 0))


@pytest.mark.parametrize("task", make.TASKS)
def test_files_and_exclude(task: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    common = [task, "--prompts", "100", "--seed", "5"]
    make.main([*common, "--out", str(first)])
    make.main([*common, "--out", str(second), "--exclude", str(first)])
    rows = [
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (first, second)
    ]
    assert len(rows[0]) == len(rows[1]) == 100
    assert not {row["x"] for row in rows[0]} & {row["x"] for row in rows[1]}
    assert {"x", "y", "strategy"} <= set(rows[0][0]) <= {"x", "y", "strategy", "answer"}


@pytest.mark.parametrize("call", [["-m", "examples.natural.make"], ["examples/natural/make.py"]])
def test_runs_as_a_module_and_as_a_script(call: list[str], tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    arguments = ["mixed", "--prompts", "5", "--completions", "3", "--draw", "distinct"]
    subprocess.run(
        [sys.executable, *call, *arguments, "--out", str(out)],
        cwd=Path(__file__).resolve().parents[2],
        check=True,
    )
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows == list(make.rows("mixed", 5, 3, "distinct", 0))
