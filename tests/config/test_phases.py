"""Which phase runs, which come, and how long all of them take."""

import pytest

from twcli.config.phases import (
    DATA,
    LOAD_MODEL,
    NAME,
    SAVE,
    SCORE,
    TRAIN,
    Phases,
    evaluation_phases,
    precompute_phases,
    training_phases,
)


def test_phases_are_numbered_and_say_what_comes():
    begun = []
    phases = Phases(lambda phases, note: begun.append((phases.name, note, phases.coming)))
    assert phases.name == "" and phases.expected() is None
    phases.plan([DATA, LOAD_MODEL, SCORE, SAVE])
    phases.begin(DATA, "5 records")
    phases.begin_next("m")
    phases.begin(SAVE)  # nothing was left to score
    assert begun == [
        ("1/4 data", "5 records", ["2 load the model", "3 score the records", "4 save"]),
        ("2/4 load the model", "m", ["3 score the records", "4 save"]),
        ("4/4 save", "", []),
    ]


def test_a_phase_that_comes_again_is_the_next_of_its_name():
    phases = Phases()
    phases.plan(training_phases("centered", 2))
    for name in (DATA, LOAD_MODEL, NAME, TRAIN):
        phases.begin(name)
    assert phases.name == "6/14 train"
    phases.begin(LOAD_MODEL)
    assert phases.name == "9/14 load the model" and "name the records" not in phases.coming
    phases.begin(TRAIN)
    assert phases.name == "12/14 train"


def test_one_clock_adds_what_is_expected_of_all_that_comes():
    phases = Phases()
    phases.plan([DATA, LOAD_MODEL, SCORE, SAVE])
    phases.begin(LOAD_MODEL)
    phases.expect({SCORE: 60.0})
    assert phases.after() is None  # nothing is known of one of them
    phases.expect({SAVE: 2.0})
    assert phases.expected() is None and phases.after() == 62
    phases.begin(SCORE)
    assert phases.expected() == 60 and phases.after() == 2
    phases.begin(SAVE)
    assert phases.after() == 0


def test_a_caller_that_has_planned_nothing_is_reported_all_the_same():
    begun = []
    phases = Phases(lambda phases, _note: begun.append(phases.name))
    phases.begin(SCORE)
    phases.begin(SAVE)
    assert begun == ["1/1 score the records", "2/2 save"]


@pytest.mark.parametrize(
    ("planned", "count"),
    [
        (precompute_phases("fp32"), 4),
        (precompute_phases("bf16"), 5),
        (training_phases("none", 1), 7),
        (training_phases("centered", 1), 8),
        (evaluation_phases(False, 1), 6),
        (evaluation_phases(True, 2), 13),
    ],
)
def test_what_a_call_leaves_out_is_not_planned(planned, count):
    assert len(planned) == count and planned[0] == DATA
