import json
from types import SimpleNamespace

import pytest

from benchmarks import skill
from examples.tasks import TASKS
from tests.conftest import make_model, make_tokenizer, write_jsonl

EQUATION = "3 x + 5 + 5 x + 7 = 1 x + 40"
TASK = TASKS["linear_equations"]


def test_a_beginning_ends_where_no_other_strategy_continues_alike():
    assert skill.beginnings(TASK, EQUATION) == {
        "unknowns_first": "8 x + 12 = 1 x + 40 | 7",
        "constants_first": "8 x + 12 = 1 x + 40 | 8",
        "both_at_once": "8 x -",
        "one_by_one": "3",
    }


@pytest.mark.parametrize("failing", list(TASK.strategies))
def test_only_what_the_judge_still_sees_counts(monkeypatch, failing):
    """A model that goes on as each trace does, but for one strategy, which it
    ends with another answer.
    """

    def generate(_model, encoder, prompts, **_how):
        texts = []
        for x in (EQUATION, "4 x + 5 + 5 x + 7 = 1 x + 44"):
            for name, trace in TASK.traces(x).items():
                rest = trace.removeprefix(skill.beginnings(TASK, x)[name]).strip()
                texts.append(f"{rest} 9" if name == failing and x != EQUATION else rest)
        assert len(texts) == len(prompts)
        return texts, [True] * len(texts)

    encoder = SimpleNamespace(
        prompt=lambda _x: [1], tokenizer=lambda text, **_how: {"input_ids": [2] * len(text.split())}
    )
    monkeypatch.setattr(skill.loading, "load_frozen", lambda _path: (None, encoder))
    monkeypatch.setattr(skill, "generate", generate)
    shares = skill.skill(TASK, "model", [EQUATION, "4 x + 5 + 5 x + 7 = 1 x + 44"])
    assert shares == {name: 0.5 if name == failing else 1.0 for name in TASK.strategies}


def test_a_model_that_knows_nothing_can_do_nothing(tmp_path, capsys):
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    data = write_jsonl(tmp_path / "d.jsonl", [{"x": EQUATION, "y": "8"}])
    skill.main(["linear_equations", "--model", str(tmp_path / "model"), "--data", data])
    assert capsys.readouterr().out.split() == [
        *(w for name in TASK.strategies for w in (name, "0.000")),
        "mean",
        "0.000",
    ]


def test_prompts_of_another_task_are_reported_in_one_line(tmp_path, capsys):
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "d.jsonl").write_text(json.dumps({"x": "w1", "y": "w2"}) + "\n")
    with pytest.raises(SystemExit) as stopped:
        skill.main(
            [
                "linear_equations",
                "--model",
                str(tmp_path / "model"),
                "--data",
                str(tmp_path / "d.jsonl"),
            ]
        )
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "not an equation: 'w1'" in told and told.count("\n") == 1
