"""The synthetic tasks and `make_data.py`: traces written by hand, judges
on garbage, disjoint files.
"""

import importlib
import json
import random
from itertools import takewhile
from math import sqrt

import pytest

from examples import make_data
from examples.tasks import (
    TASKS,
    base_conversion,
    graph_search,
    grid_pathfinding,
    linear_equations,
    multidigit_addition,
    sorting_algorithms,
    string_editing,
)
from examples.tasks.task import Task

SORTING = "sorting_algorithms"
TRACES = {
    "sorting_algorithms": (
        "14 3 9 0 7",
        {
            "selection_min": "0 3 9 14 7 | 0 3 9 14 7 | 0 3 7 14 9 | 0 3 7 9 14",
            "selection_max": "7 3 9 0 14 | 7 3 0 9 14 | 0 3 7 9 14 | 0 3 7 9 14",
            "insertion": "3 14 9 0 7 | 3 9 14 0 7 | 0 3 9 14 7 | 0 3 7 9 14",
            "bubble": "3 9 0 7 14 | 3 0 7 9 14 | 0 3 7 9 14 | 0 3 7 9 14",
        },
    ),
    "grid_pathfinding": (
        "start r2 c5 goal r4 c2 blocked r0 c7 r6 c1",
        {
            "rows_first": "r2 c5 r3 c5 r4 c5 r4 c4 r4 c3 r4 c2",
            "columns_first": "r2 c5 r2 c4 r2 c3 r2 c2 r3 c2 r4 c2",
            "staircase_rows": "r2 c5 r3 c5 r3 c4 r4 c4 r4 c3 r4 c2",
            "staircase_columns": "r2 c5 r2 c4 r3 c4 r3 c3 r4 c3 r4 c2",
        },
    ),
    "multidigit_addition": (
        "3 4 7 + 2 8 5",
        {
            "columns": "7 5 0 : 1 2 | 4 8 1 : 1 3 | 3 2 1 : 0 6 | 0 6 3 2",
            "places": "3 2 : 0 5 0 0 | 4 8 : 0 6 2 0 | 7 5 : 0 6 3 2",
            "running": "3 4 7 | 2 : 0 5 4 7 | 8 : 0 6 2 7 | 5 : 0 6 3 2",
            "running_swapped": "2 8 5 | 3 : 0 5 8 5 | 4 : 0 6 2 5 | 7 : 0 6 3 2",
        },
    ),
    "linear_equations": (
        "3 x + 5 + 5 x + 7 = 1 x + 40",
        {
            "unknowns_first": "8 x + 12 = 1 x + 40 | 7 x + 12 = 40 | 7 x = 28 | x = 4",
            "constants_first": "8 x + 12 = 1 x + 40 | 8 x = 1 x + 28 | 7 x = 28 | x = 4",
            "both_at_once": "8 x - 1 x = 40 - 12 | 7 x = 28 | x = 4",
            "one_by_one": "3 x + 5 x - 1 x = 40 - 5 - 7 | 8 x - 1 x = 35 - 7 | 7 x = 28 | x = 4",
        },
    ),
    "base_conversion": (
        "1 0 1 1 0 0 1 0 1 1 0 1 0 0 1 1 0 1 1 0",
        {
            "groups": "1 0 1 1 b | 0 0 1 0 2 | 1 1 0 1 d | 0 0 1 1 3 | 0 1 1 0 6 | b 2 d 3 6",
            "doubling": "1 2 5 b | 0 0 1 2 | 1 3 6 d | 0 0 1 3 | 0 1 3 6 | b 2 d 3 6",
            "base_four": "2 3 0 2 3 1 0 3 1 2 | b 2 d 3 6",
        },
    ),
    "graph_search": (
        "from a to f : c > e f , a > c d , e > i j , d > g h",
        {
            "depth_left": "a | c d | e f d | i j f d | j f d | f d | f c a",
            "depth_right": "a | d c | h g c | g c | c | f e | f c a",
            "breadth_left": "a | c d | d e f | e f g h | f g h i j | f c a",
            "breadth_right": "a | d c | c h g | h g f e | g f e | f e | f c a",
            "climbing": "c > e f | a > c d | f c a",
        },
    ),
    "string_editing": (
        "f a k c h b : drop h , a becomes e , d after c",
        {
            "in_order": "f a k c b | f e k c b | f e k c d b",
            "in_reverse": "f a k c d h b | f e k c d h b | f e k c d b",
            "from_left": "f : f | a : e | k : k | c : c d | h : | b : b | f e k c d b",
            "from_right": "b : b | h : | c : c d | k : k | a : e | f : f | f e k c d b",
        },
    ),
    "string_reversal": (
        "f a k c h b",
        {
            "swap": "b a k c h f | b h k c a f | b h c k a f",
            "from_back": "b | b h | b h c | b h c k | b h c k a | b h c k a f",
            "to_front": "f | a f | k a f | c k a f | h c k a f | b h c k a f",
            "halves": "k a f | b h c | b h c k a f",
        },
    ),
    "common_letters": (
        "f a c g and c k g b",
        {
            "first_row": "f - a - c + g + | c g",
            "second_row": "c + k - g + b - | c g",
            "strike": "a f | b k | c g",
            "alphabet": "a 1 b 2 c 3 f 1 g 3 k 2 | c g",
        },
    ),
    "letter_count": (
        "a in b a c a a d",
        {
            "tally": "b 0 a 1 c 1 a 2 a 3 d 3 | 3",
            "pick": "a a a | 3",
            "places": "2 4 5 | 3",
            "halves": "b a c | 1 | a a d | 2 | 3",
        },
    ),
    "number_sum": (
        "7 + 2 + 9 + 4 + 1",
        {
            "from_left": "7 | 9 | 18 | 22 | 23",
            "from_right": "1 | 5 | 14 | 16 | 23",
            "largest_first": "9 | 16 | 20 | 22 | 23",
            "smallest_first": "1 | 3 | 7 | 14 | 23",
            "pairs": "9 | 13 | 1 | 22 | 23",
        },
    ),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def make(tmp_path, task, *flags, records=40, seed=0, name="out.jsonl"):
    out = tmp_path / name
    make_data.main(
        [task, "--records", str(records), "--seed", str(seed), "--out", str(out), *flags]
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def refusal(capsys, tmp_path, *arguments):
    """The one line that a call is refused with."""
    with pytest.raises(SystemExit) as stopped:
        make_data.main([*arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert not list(tmp_path.glob(".*.part"))
    return error


@each_task
def test_traces_by_hand(task):
    x, traces = TRACES[task.name]
    assert task.is_usable(x)
    assert task.traces(x) == traces
    assert [task.judge(x, y) for y in traces.values()] == [(name, True) for name in traces]


@pytest.mark.slow
@each_task
def test_drawn_prompts_and_their_traces(task):
    rng = random.Random(0)
    drawn = [x for x in (task.sample_prompt(rng) for _ in range(500)) if task.is_usable(x)]
    assert len(drawn) > 250
    for x in drawn:
        for name, y in task.traces(x).items():
            assert len(y.split()) <= 40 and " ".join(y.split()) == y
            assert task.judge(x, y) == (name, True)


@pytest.mark.parametrize(
    ("task", "first", "second", "alike"),
    [
        ("linear_equations", "unknowns_first", "constants_first", "8 x + 12 = 1 x + 40 |"),
        ("graph_search", "depth_left", "breadth_left", "a | c d |"),
        ("string_editing", "in_order", "in_reverse", "f a k c"),
    ],
)
def test_pair_that_starts_alike(task, first, second, alike):
    x, _ = TRACES[task]
    traces = TASKS[task].traces(x)
    both = zip(traces[first].split(), traces[second].split(), strict=False)
    assert " ".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], both)) == alike


@each_task
def test_judge_is_importable(task):
    assert importlib.import_module(f"examples.tasks.{task.name}").judge == task.judge


@each_task
@pytest.mark.parametrize(
    "y", ["", " ", "|", ":", "\0", "r", "r1", "²", "r² c²", "0" * 5000, "<y>", "é ☃", None, 7]
)
def test_judge_survives_garbage(task, y):
    assert task.judge(TRACES[task.name][0], y) == (None, False)


@each_task
@pytest.mark.parametrize("x", ["", "x", "1 2 +", "+", "² ³", "start r1", None, 3, ["1"]])
def test_judge_gives_up_on_what_is_no_prompt(task, x):
    assert task.judge(x, "0 1 2") == (None, None)


@pytest.mark.parametrize(
    ("y", "correct"),
    [
        ("0 3 7 9 14", True),
        ("x | 0 3 7 9 14", True),
        ("0 3 7 9", False),
        ("0 3 7 9 14 |", False),
        ("1 0 3 7 9 14", False),
        ("14 9 7 3 0", False),
    ],
)
def test_sorting_answer(y, correct):
    assert sorting_algorithms.judge("14 3 9 0 7", y) == (None, correct)


@pytest.mark.parametrize(
    ("y", "correct"),
    [
        ("r2 c5 r3 c5 r3 c4 r3 c3 r3 c2 r4 c2", True),  # another path
        ("r2 c5 r2 c6 r3 c6 r4 c6 r4 c5 r4 c4 r4 c3 r4 c2", True),  # longer than needed
        ("r2 c5 r4 c2", False),  # a leap
        ("r3 c5 r4 c5 r4 c4 r4 c3 r4 c2", False),  # starts elsewhere
        ("r2 c5 r3 c5 r4 c5", False),  # ends elsewhere
        ("r2 c5 r3 c5 r4 c5 r4 c4 r4 c3 r4", False),  # half a cell
    ],
)
def test_grid_answer(y, correct):
    assert grid_pathfinding.judge("start r2 c5 goal r4 c2 blocked r0 c7 r6 c1", y) == (
        None,
        correct,
    )


def test_grid_refuses_blocked_cells():
    x = "start r2 c5 goal r4 c2 blocked r3 c5 r6 c1"
    assert not grid_pathfinding.TASK.is_usable(x)
    assert grid_pathfinding.judge(x, TRACES["grid_pathfinding"][1]["rows_first"]) == (
        "rows_first",
        False,
    )


@pytest.mark.parametrize(
    ("y", "correct"),
    [
        ("0 6 3 2", True),
        ("6 3 2", False),
        ("9 0 6 3 2", False),
        ("1 : 0 6 3 2", True),
        ("0 6 3 2 |", False),
    ],
)
def test_addition_answer(y, correct):
    assert multidigit_addition.judge("3 4 7 + 2 8 5", y) == (None, correct)


@pytest.mark.parametrize(
    ("y", "correct"),
    [
        ("x = 4", True),
        ("7 x = 28 | x = 4", True),
        ("x = 5", False),
        ("7 x = 28", False),
        ("4", False),
        ("x = 4 |", False),
        ("7 x = 28 x = 4", False),
        ("9 x = 9 | x = 4", True),
    ],
)
def test_equation_answer(y, correct):
    assert linear_equations.judge("3 x + 5 + 5 x + 7 = 1 x + 40", y) == (None, correct)


@pytest.mark.parametrize(
    "x",
    [
        "3 x + 5 + 5 x + 7 = 1 x + 41",  # no natural solution
        "3 x + 5 + 5 x + 7 = 1 x + 5",  # a negative one
        "3 x + 5 + 5 x + 7 = 8 x + 12",  # every number is one
        "3 x + 5 + 5 x + 7 = 9 x + 40",  # more unknowns on the right
        "3 x + 5 + 5 x + 07 = 1 x + 40",
        "3 x + 5 = 1 x + 9",
    ],
)
def test_what_is_no_equation(x):
    assert linear_equations.judge(x, "x = 4") == (None, None)


@pytest.mark.parametrize(
    ("y", "correct"),
    [
        ("b 2 d 3 6", True),
        ("x | b 2 d 3 6", True),
        ("b 2 d 3", False),
        ("b 2 d 3 7", False),
        ("11 2 13 3 6", False),
        ("B 2 D 3 6", False),
        ("b 2 d 3 6 |", False),
        ("2 3 0 2 3 1 0 3 1 2 b 2 d 3 6", False),
    ],
)
def test_conversion_answer(y, correct):
    assert base_conversion.judge("1 0 1 1 0 0 1 0 1 1 0 1 0 0 1 1 0 1 1 0", y) == (None, correct)


@pytest.mark.parametrize(
    "x", ["1 0 1 1", "1 0 1 1 " * 6, "1 0 1 2 " * 5, "10 1 1 " * 5, "10110010110100110110"]
)
def test_what_is_no_binary_number(x):
    assert base_conversion.judge(x, "b 2 d 3 6") == (None, None)


@pytest.mark.parametrize(
    ("y", "correct"),
    [
        ("f c a", True),
        ("a | f c a", True),
        ("a c f", False),
        ("f a", False),
        ("f d a", False),
        ("f c", False),
        ("f c a |", False),
        ("a f c a", False),
    ],
)
def test_path_answer(y, correct):
    assert graph_search.judge(TRACES["graph_search"][0], y) == (None, correct)


@pytest.mark.parametrize(
    "x",
    [
        "from a to f : a > b c , b > d a , c > e f",  # a loop through the root
        "from a to f : a > b c , b > d e , c > e f",  # two ways to e
        "from a to f : a > b c , b > d e , b > f g",  # b divides twice
        # a loop that the root does not reach
        "from a to f : a > b c , d > f d",
        "from a to f : a > b c , b > d e",  # no such node
        "from a to f : a > b , b > f c",
        "from a to f : a > b z",
        "from a to f :",
    ],
)
def test_what_is_no_tree(x):
    assert graph_search.judge(x, "f c a") == (None, None)


def test_goal_near_the_root_is_unusable():
    tree = "a > c d , c > e f , d > g h , e > i j"
    for goal, usable in [
        ("a", False),
        ("c", False),
        ("d", False),
        ("e", True),
        ("h", True),
        ("j", True),
    ]:
        assert graph_search.TASK.is_usable(f"from a to {goal} : {tree}") == usable


@pytest.mark.parametrize(
    ("y", "correct"),
    [
        ("f e k c d b", True),
        ("x | f e k c d b", True),
        ("f e k c b", False),
        ("f a k c d b", False),
        ("f e k d c b", False),
        ("f a k c d h b | f e k c d h b", False),
        ("f e k c d b |", False),
    ],
)
def test_editing_answer(y, correct):
    assert string_editing.judge(TRACES["string_editing"][0], y) == (None, correct)


@pytest.mark.parametrize(
    "x",
    [
        "a b c d : drop e",  # not there
        "a b c d : drop a , a becomes e",  # twice the same letter
        "a b c d : a becomes b",  # a letter that is there
        "a b c d : a becomes e , e after b",  # twice the same new letter
        "a a b c : drop a",
        "a : drop a",
        "a b c d : turn a",
        "a b c d :",
        "a b c d : drop a ,",
    ],
)
def test_edits_that_depend_on_their_order_are_no_prompt(x):
    assert string_editing.judge(x, "a b") == (None, None)


def test_prompts_with_equal_traces_are_unusable():
    assert not sorting_algorithms.TASK.is_usable("1 2 3 4 5")
    assert not multidigit_addition.TASK.is_usable("1 2 3 + 1 2 3")


@each_task
def test_file_has_the_records_asked_for(task, tmp_path):
    records = make(tmp_path, task.name, "--completions", "3", records=40)
    prompts = [r["x"] for r in records[::3]]
    assert [r["x"] for r in records] == [x for x in prompts for _ in range(3)][:40]
    assert len(set(prompts)) == len(prompts) == 14
    assert len({r["id"] for r in records}) == 40
    for r in records:
        assert task.is_usable(r["x"]) and task.judge(r["x"], r["y"]) == (r["strategy"], True)
        assert r["y"].endswith(r["answer"])


@each_task
def test_seeds_share_no_prompt_and_repeat_themselves(task, tmp_path):
    first, again = make(tmp_path, task.name, seed=3), make(tmp_path, task.name, seed=3)
    assert first == again
    assert {make_data.bucket(r["x"]) for r in first} == {3}
    assert {r["x"] for r in first}.isdisjoint(r["x"] for r in make(tmp_path, task.name, seed=4))


def test_mixture_is_even(tmp_path):
    drawn = [r["strategy"] for r in make(tmp_path, "multidigit_addition", records=2000)]
    # 500 +- 3.6 sigma
    assert all(430 < drawn.count(name) < 570 for name in TRACES["multidigit_addition"][1])


@pytest.mark.slow
@pytest.mark.parametrize(("many", "percent"), [(False, (60, 20, 15, 5)), (True, (20, 5, 60, 15))])
def test_mixture_of_equations_is_uneven_and_depends_on_the_prompt(many, percent, tmp_path):
    records = make(tmp_path, "linear_equations", records=6000)
    drawn = [r["strategy"] for r in records if (int(r["x"].split()[10]) >= 13) == many]
    assert len(drawn) > 2000
    for name, expected in zip(TRACES["linear_equations"][1], percent, strict=True):
        p = expected / 100
        assert abs(drawn.count(name) / len(drawn) - p) < 4 * sqrt(p * (1 - p) / len(drawn))


def test_weights_may_depend_on_the_prompt():
    task = Task(
        "t",
        lambda rng: str(rng.randrange(10**6)),
        {"a": lambda x: f"a {x}", "b": lambda x: f"b {x}"},
        answer=str,
        answer_is_right=lambda x, tokens: True,
        weights=lambda x: (1, 0) if int(x) % 2 else (0, 1),
    )
    for record in make_data.records(task, 20, 2, 0, set()):
        assert record["strategy"] == ("a" if int(record["x"]) % 2 else "b")


def test_excluded_prompts_are_not_drawn(tmp_path):
    first = make(tmp_path, "sorting_algorithms", name="first.jsonl")
    second = make(tmp_path, "sorting_algorithms", "--exclude", str(tmp_path / "first.jsonl"))
    assert {r["x"] for r in first}.isdisjoint(r["x"] for r in second)


def test_prompts_that_run_out(monkeypatch, tmp_path, capsys):
    small = Task(
        "small", lambda rng: str(rng.randrange(200)), {"a": str}, str, lambda x, tokens: True
    )
    monkeypatch.setitem(TASKS, "small", small)
    out = tmp_path / "out.jsonl"
    out.write_text("kept")
    error = refusal(
        capsys, tmp_path, "small", "--records", "100", "--completions", "2", "--out", str(out)
    )
    there = sum(make_data.bucket(str(i)) == 0 for i in range(200))
    assert f"only {there} prompts" in error and f"enough for {2 * there} records" in error
    assert out.read_text() == "kept"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["nothing", "--records", "4"], "invalid choice"),
        ([SORTING], "--records"),
        ([SORTING, "--records", "0"], "0 is less than 1"),
        ([SORTING, "--records", "x"], "invalid"),
        ([SORTING, "--records", "4", "--seed", "-1"], "-1"),
        ([SORTING, "--records", "4", "--nonsense"], "--nonsense"),
        ([SORTING, "--records", "4", "--exclude", "absent.jsonl"], "absent.jsonl: cannot be read"),
    ],
)
def test_bad_flags(flags, said, tmp_path, capsys):
    assert said in refusal(capsys, tmp_path, *flags, "--out", str(tmp_path / "out.jsonl"))


def test_unwritable_out(tmp_path, capsys):
    out = tmp_path / "absent" / "out.jsonl"
    call = [SORTING, "--records", "4", "--out"]
    assert f"{out}: cannot be written" in refusal(capsys, tmp_path, *call, str(out))
    assert "cannot be written" in refusal(capsys, tmp_path, *call, str(tmp_path))


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"x": 1}', ""])
def test_exclude_names_the_line(line, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"x": "1"}\n' + line + "\n")
    call = [SORTING, "--records", "4", "--exclude", str(bad), "--out", str(tmp_path / "out.jsonl")]
    assert f"{bad}:2: " in refusal(capsys, tmp_path, *call)
