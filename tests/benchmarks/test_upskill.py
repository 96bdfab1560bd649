"""The arithmetic toy: its answers, its judge, and the benchmark's data and tables."""

import json
import random
from pathlib import Path

import pytest

from benchmarks import pages, passk, upskill
from examples.tasks import triples

ROOT = Path(__file__).parents[2]

# by hand; the first is the one that the published warm-up teaches
BY_HAND = {
    "2 6 3": ["6 / 3", "2 * 3", "3 * 2", "6 / 2"],
    "1 1 1": ["1 * 1", "1 / 1"],
    "0 0 5": ["0 * 5", "0 / 5", "0 % 5", "5 * 0"],
    "9 2 1": ["9 % 2"],
}


@pytest.mark.parametrize("x", BY_HAND)
def test_answers_by_hand(x):
    found = triples.answers(x)
    assert found == BY_HAND[x]
    for y in found:
        assert triples.judge(x, y) == (y.split()[1], True)


@pytest.mark.parametrize(
    ("x", "y", "verdict"),
    [
        ("2 6 3", "3 / 6", ("/", False)),
        ("2 6 3", "2 + 6", ("+", False)),
        ("2 6 3", "6 / 3 = 2", (None, False)),
        ("2 6 3", "", (None, False)),
        ("5 2 2", "5 / 2", ("/", False)),  # 2.5 is no digit
        ("0 0 0", "0 / 0", ("/", False)),
        ("2 6", "2 * 3", (None, None)),
    ],
)
def test_verdicts(x, y, verdict):
    assert triples.judge(x, y) == verdict


def test_each_problem_has_an_answer_and_about_half_have_one_operator():
    trained, kept_out = upskill.problems(0)
    every = trained + kept_out
    assert len(set(every)) == len(every) == 416
    operators = [{y.split()[1] for y in triples.answers(x)} for x in every]
    assert all(operators) and 0.45 < sum(len(o) == 1 for o in operators) / len(every) < 0.55
    assert not {"".join(sorted(x)) for x in trained} & {"".join(sorted(x)) for x in kept_out}
    assert upskill.problems(1)[0] != trained
    rng = random.Random(1)
    assert {triples.sample_prompt(rng) for _ in range(500)} <= set(every)


def test_passed_counts_what_is_missing_as_wrong(tmp_path):
    lines = [{"x": "2 6 3", "y": "2 * 3"}, {"x": "2 6 3", "y": "2 + 3"}, {"x": "9 2 1", "y": "9"}]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # one of five right, none of five
    found = upskill.passed(path, ["2 6 3", "9 2 1"], 5)
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_the_tables():
    part = {
        "temperature": 0.9,
        "k": [1, 2, 4, 5],
        "frozen": [0.1, 0.2, 0.3, 0.4],
        "even": [0.2, 0.4, 0.6, 0.8],
        "control": [0.5, 0.5, 0.5, 0.5, 0.6],
        "gain": [40.0, 30.0, 50.0],
    }
    named = [{**dict.fromkeys(upskill.OPERATORS, 0), "+": 3, "-": 1}]
    figures = {
        "seed": 7,
        "made": "2026-01-02 of twcli 0",
        "parts": dict.fromkeys(upskill.PARTS, part),
        "named": named,
    }
    text = upskill.tables([figures])
    assert text.startswith("`make upskill`, 2026-01-02 of twcli 0.\n")
    row = "| 7 | 0.100, 0.400 (0.9) | 0.500, 0.600 | 0.200, 0.800 | 40.0 (30.0 to 50.0) |"
    assert text.count(row) == 2
    assert "| 7, z0 | 4 | 0.75 | 0.25 | 0.00 | 0.00 | 0.00 |" in text
    assert "| GRPO with it: UpSkill | 0.369 | 0.847 |" in text


def test_the_tables_of_the_page_are_those_of_its_file():
    """And the shares solved of its prose."""
    page = ROOT / "docs" / "upskill.md"
    figures = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert figures and pages.between(page, passk.PLACE) == upskill.tables(figures).strip()
    prose = " ".join(page.read_text(encoding="utf-8").split())
    trained, kept_out = (figures[0]["parts"][name] for name in upskill.PARTS)
    for said in (
        f"solve {100 * trained['even'][-1]:.1f} % under the latents and "
        f"{100 * trained['frozen'][-1]:.1f} % of",
        f"{trained['gain'][0]:.1f} points more ({trained['gain'][1]:.1f} to",
        f"{-kept_out['gain'][0]:.1f} points below the frozen model",
        f"solves {100 * kept_out['control'][0]:.1f} and {100 * kept_out['control'][-1]:.1f} %",
    ):
        assert said in prose, said
