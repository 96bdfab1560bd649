"""Judges by name, and judges that fail: each costs its completion's verdict and nothing else."""

import os
import signal
import sys
import time
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest

from tests.conftest import write_jsonl
from twcli.config.evaluate import EvalConfig
from twcli.errors import UserError
from twcli.evaluation.judges import Judge, as_verdict
from twcli.evaluation.ready_judges import last_number, load_judge

BROKEN = {
    "syntax": "def judge(x, y)",
    "name": "nonesuch",
    "exit": "raise SystemExit(3)",
    "input": "raise EOFError",
    "claim": "assert 0",
}
SUM = {"x": "1200 + 34", "y": "we get #### 1,234", "answer": 1234}
WORDS = {"x": "été", "y": "un deux"}


@pytest.fixture
def config(tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", [SUM, WORDS, WORDS | {"y": "trois"}])
    return EvalConfig(run="run", data=data)


def judged(config, judge, *pairs, seconds=10.0):
    return load_judge(replace(config, judge=judge, judge_seconds=seconds)).verdicts(pairs)


@pytest.mark.parametrize("case", BROKEN)
def test_a_judge_whose_module_cannot_be_run_is_one_line(tmp_path, monkeypatch, config, case):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"judge_{case}.py").write_text(BROKEN[case])
    says = f"--judge judge_{case}:judge: cannot be imported from .*Error|SystemExit"
    with pytest.raises(UserError, match=says):
        judged(config, f"judge_{case}:judge")


@pytest.mark.parametrize("name", ["nothing", ":judge", "regex:", "reasoning_gym", "cmd", "exact:1"])
def test_a_name_that_is_no_judge(config, name):
    with pytest.raises(UserError, match=r"give exact, number, regex:PATTERN|cannot be imported"):
        judged(config, name)


def test_a_relative_module_is_no_judge(config):
    with pytest.raises(UserError, match=r"--judge \.x:judge: cannot be imported"):
        judged(config, ".x:judge")


def test_what_a_judge_prints_is_no_result(tmp_path, monkeypatch, capsys, config):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "judge_aloud.py").write_text(
        "print('loaded')\ndef judge(x, y):\n    print('called')\n    return 's', True\n"
    )
    try:
        assert judged(config, "judge_aloud:judge", ("x", "y")) == [("s", True)]
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
    found = as_verdict(verdict)
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
    judge = Judge("j", lambda _x, _y: verdict, 1.0)
    says = r"--judge j: returned .* on y 'why'; a judge returns \(strategy or None, correct or None"
    with pytest.raises(UserError, match=says):
        judge.verdicts([("x", "why")])


def test_a_failing_judge_costs_the_completion_alone(capsys):
    def fails(_x, y):
        print("aside")
        if y == "raise":
            raise ValueError("half a verdict")
        if y == "leave":
            raise SystemExit
        return ("s", True) if y == "good" else "no verdict"

    judge = Judge("j", fails, 1.0)
    ys = ["good", "raise", "leave", "odd", "raise", "good"]
    advanced = []
    found = judge.verdicts([("x", y) for y in ys], advanced.append)
    assert found == [("s", True), None, None, None, None, ("s", True)]
    assert len(advanced) == 4  # equal completions are judged once
    assert capsys.readouterr().out == ""
    report = judge.report()
    assert (report["asked"], report["failed"]) == (6, 4)
    assert report["reasons"]["raised ValueError: half a verdict"] == 2
    assert report["examples"][0] == {
        "x": "x",
        "y": "raise",
        "reason": "raised ValueError: half a verdict",
    }
    assert "4 of 6 completions have no verdict" in judge.warning()
    assert Judge("j", fails, 1.0).warning() is None


@pytest.mark.parametrize("swallows", [False, True])
def test_a_hanging_judge_costs_the_completion_alone(swallows):
    def hangs(_x, y):
        while y == "hang":
            try:
                time.sleep(30)
            except Exception:
                if not swallows:
                    raise
        return None, True

    begun = time.monotonic()
    judge = Judge("j", hangs, 0.1)
    assert judge.verdicts([("x", "hang"), ("x", "y")]) == [None, (None, True)]
    assert time.monotonic() - begun < 5
    assert judge.failures == {"took more than 0.1 s (--judge-seconds)": 1}


@pytest.mark.slow
def test_an_alarm_that_was_set_before_is_kept():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    left = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        assert Judge("j", lambda _x, _y: (None, True), 1.0).verdicts([("x", "y")])
        time.sleep(0.4)
        assert rung == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)


def test_exact(config):
    pairs = [("1200 + 34", " 1234\n"), ("1200 + 34", "we get #### 1,234"), ("été", "trois")]
    found = judged(config, "exact", *pairs, ("été", "quatre"))
    assert found == [(None, True), (None, False), (None, True), (None, False)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234.50", "1234.5"),
        ("x = 5-3", "3"),
        ("so it is -3", "-3"),
        ("(\u22127)", "-7"),
        ("3 apples, 4.", "4"),
        ("1,2,3", "3"),
        ("12,345,678", "12345678"),
        ("$18", "18"),
        ("1,2345", "2345"),
        ("٣", "3"),
        ("none", None),
        ("", None),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_number(config):
    pairs = [("1200 + 34", y) for y in ("first 1200, then 1234.0", "1235", "")]
    found = judged(config, "number", *pairs, ("été", "3"))
    assert found == [(None, True), (None, False), (None, False), None]


def test_regular_expressions(config):
    x = "1200 + 34"
    assert judged(config, "regex:^a+$", (x, "aa"), (x, "ab")) == [(None, True), (None, False)]
    groups = r"regex:(?P<strategy>long|short)?.*= (?P<answer>\d+)"
    pairs = [(x, "long 1 = 1 ; long = 1234"), (x, "short = 1235"), (x, "none")]
    assert judged(config, groups, *pairs) == [("long", True), ("short", False), (None, False)]
    assert judged(config, "regex:(?P<strategy>\\w+)", (x, "a b")) == [("b", None)]
    for pattern, says in (("(", "is no regular expression"), ("(?P<why>a)", "the group why means")):
        with pytest.raises(UserError, match=says):
            judged(config, f"regex:{pattern}")


def test_a_regular_expression_that_would_take_for_ever(config):
    pairs = [("1200 + 34", "a" * 40 + "!"), ("1200 + 34", "aa")]
    assert judged(config, "regex:^(a|aa)+$", *pairs, seconds=0.2) == [None, (None, True)]


@pytest.mark.slow
def test_reasoning_gym(tmp_path):
    import reasoning_gym

    entries = list(reasoning_gym.create_dataset("countdown", size=2, seed=1))
    records = [
        {"x": e["question"], "y": e["answer"], "answer": e["answer"], "metadata": e["metadata"]}
        for e in entries
    ]
    data = write_jsonl(tmp_path / "data.jsonl", [*records, {"x": "bare", "y": "y"}])
    config = EvalConfig(run="run", data=data)
    x, right = records[0]["x"], records[0]["y"]
    found = judged(
        config,
        "reasoning_gym:countdown",
        (x, right),
        (x, f"I think <answer> {right} </answer>."),
        (x, "1 + 1"),
        (x, records[1]["y"]),
        ("bare", right),
    )
    assert found == [(None, True), (None, True), (None, False), (None, False), None]
    with pytest.raises(UserError, match="nonesuch"):
        judged(config, "reasoning_gym:nonesuch")
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"x": "x", "y": "y"}])
    with pytest.raises(UserError, match=r"no record of .* has a field 'metadata'"):
        judged(EvalConfig(run="run", data=bare), "reasoning_gym:countdown")


PROGRAM = """
import json, os, subprocess, sys, time
asked = json.load(sys.stdin)
assert sys.argv[1:] == ["plain", "two words"], sys.argv
if asked["y"] == "hang":
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(60)  # {os.getpid()}"])
    open(os.environ["PIDS"], "w").write(str(os.getpgid(0)))
    time.sleep(60)
if asked["y"] == "fail":
    sys.exit("no idea")
if asked["y"] == "flood":
    while True:
        print("x" * 65536)
if asked["y"] == "talk":
    print("it is right")
elif asked["y"] == "odd":
    print(json.dumps({"correct": "yes"}))
else:
    print(json.dumps({"strategy": asked["x"], "correct": asked["y"] in asked["answers"]}))
"""


@pytest.mark.slow
def test_a_command(tmp_path, monkeypatch, config):
    program = tmp_path / "judge it.py"
    program.write_text(PROGRAM)
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    name = f"cmd:{sys.executable} '{program}' plain 'two words'"
    judge = load_judge(replace(config, judge=name, judge_seconds=3.0))
    ys = ["un deux", '\'; touch x; "$(x)" \n', "hang", "fail", "flood", "talk", "odd"]
    found = judge.verdicts([("été", y) for y in ys])
    assert found[:2] == [("été", True), ("été", False)] and found[2:] == [None] * 5
    reasons = [example["reason"] for example in judge.examples]
    assert reasons[:3] == [
        "took more than 3 s (--judge-seconds)",
        "ended with code 1: no idea",
        "wrote more than 1 MiB",
    ]
    assert "is not the JSON object" in reasons[3] and "returned (None, 'yes')" in reasons[4]
    group = int((tmp_path / "pids").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # what the command started is ended with it
        try:
            os.killpg(group, 0)
            time.sleep(0.05)
        except ProcessLookupError:
            break
    else:
        pytest.fail("a process of the command is still there")


def test_commands_that_cannot_be_run(config):
    with pytest.raises(UserError, match="cannot be started: No such file"):
        judged(config, "cmd:/no/such/program", ("été", "y"))
    with pytest.raises(UserError, match="No closing quotation"):
        judged(config, "cmd:'", ("été", "y"))
    with pytest.raises(UserError, match="names no command"):
        judged(config, "cmd: ", ("été", "y"))


@pytest.mark.parametrize("answer", [True, [1], {"a": 1}])
def test_answers_that_are_neither_text_nor_number(tmp_path, answer):
    data = write_jsonl(tmp_path / "data.jsonl", [{"x": "x", "y": "y", "answer": answer}])
    with pytest.raises(UserError, match=r"data\.jsonl:1: field 'answer' must be text or a number"):
        judged(EvalConfig(run="run", data=data), "exact")
