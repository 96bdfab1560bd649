import sys

import numpy as np
import pytest

from twcli.errors import UserError
from twcli.evaluation.evaluate import _judged, load_judge

BROKEN = {
    "syntax": "def judge(x, y)",
    "name": "nonesuch",
    "exit": "raise SystemExit(3)",
    "input": "raise EOFError",
    "claim": "assert 0",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_judge_whose_module_cannot_be_run_is_one_line(tmp_path, monkeypatch, case):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"judge_{case}.py").write_text(BROKEN[case])
    with pytest.raises(
        UserError, match=f"--judge judge_{case}:judge: cannot be imported from .*Error|SystemExit"
    ):
        load_judge(f"judge_{case}:judge")


def test_a_relative_module_is_no_judge():
    with pytest.raises(UserError, match=r"--judge \.x:judge: cannot be imported"):
        load_judge(".x:judge")


def test_what_a_judge_prints_is_no_result(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "judge_aloud.py").write_text(
        "print('loaded')\ndef judge(x, y):\n    print('called')\n    return 's', True\n"
    )
    try:
        assert _judged(load_judge("judge_aloud:judge"), "x", "y", "j") == ("s", True)
    finally:
        sys.modules.pop("judge_aloud", None)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "loaded\ncalled\n")


@pytest.mark.parametrize(
    ("verdict", "taken"),
    [
        (("s", np.True_), ("s", True)),
        (["s", 0], ("s", False)),
        ((None, None), (None, None)),
        (("", np.int64(1)), (None, True)),
    ],
)
def test_verdicts_that_are_taken(verdict, taken):
    found = _judged(lambda _x, _y: verdict, "x", "y", "j")
    assert found == taken and type(found[1]) is type(taken[1])


@pytest.mark.parametrize(
    "verdict",
    [
        ("s0", "no"),
        "s0",
        "ab",
        None,
        ("s", True, 1),
        (3, True),
        ("s", 2),
        ("s", 1.0),
        {"s": 1, "t": 2},
    ],
)
def test_verdicts_that_are_refused(verdict):
    with pytest.raises(
        UserError,
        match=(
            r"--judge j: returned .* on y 'why'; "
            r"a judge returns \(strategy or None, correct or None\)"
        ),
    ):
        _judged(lambda _x, _y: verdict, "x", "why", "j")
