import json

import pytest
from rich.console import Console

from tests.evaluation.test_metrics import perfect
from twcli.evaluation.metrics import summarise
from twcli.evaluation.report import (
    _diagnostic_lines,
    coloured,
    mapping_line,
    not_measured,
    render_table,
    rows_of,
    to_json,
    verdict_lines,
)


@pytest.fixture(scope="module")
def result():
    return summarise(**perfect())


def test_json_is_one_line_and_reads_back(result):
    assert "\n" not in to_json(result)
    assert json.loads(to_json(result)) == result


def test_a_run_in_which_no_gradient_was_amplified_is_reported_all_the_same():
    """Where one latent is used no step measures it, and `inspect` has no such key."""
    last = {
        "z_sensitivity": 0.5,
        "z_sensitivity_sum": 2.0,
        "informative": 0.4,
        "informative_tokens": 3.0,
        "expected_amplification": 2.5,
        "uniform_rows": None,
        "posterior_gradient_norm": None,
        "latent_gradient_norm": 1.0,
        "gradient_norm": 2.0,
    }
    last["z_sensitivity_weighted"] = None
    lines = _diagnostic_lines(last)
    assert "q's gradient amplified T / t0 2.5" in lines[1]
    assert "amplified 3.0 times, T / t0 2.5" in _diagnostic_lines({**last, "amplification": 3.0})[1]


def test_a_null_says_why():
    notes = {
        key: note
        for _, key, value, _, note in rows_of(summarise(**perfect(judge=False)))
        if value == "-"
    }
    assert notes["generation_one_to_one"] == notes["answer_accuracy"] == "no --judge was given"
    bare = summarise(**{**perfect(judge=False), "labels": None, "frozen_nll": None})
    notes = {key: note for _, key, value, _, note in rows_of(bare) if value == "-"}
    assert notes["nmi"] == notes["strategy_accuracy"]
    assert notes["nmi"] == "no strategy labels in the data and no --judge"
    assert notes["gain"] == "original model not found; give --model"
    assert notes["score"] == "original model not found; give --model"
    notes = {
        key: note for _, key, value, _, note in rows_of(summarise(**perfect())) if value == "-"
    }
    assert notes["score"] == "no two prompts with two completions"
    assert mapping_line(bare) == ""


def test_a_reason_is_said_once_with_the_field_that_was_looked_for():
    bare = summarise(**{**perfect(judge=False), "labels": None})
    bare["labels"] = {"field": "strategy", "records": 0, "unread": ["style", "source"]}
    lines = not_measured(bare)
    named = [line for line in lines if "posterior_one_to_one" in line]
    assert len(named) == 1
    assert "no record has the field 'strategy', and there is no --judge" in named[0]
    assert "--strategy-field names another field; the records have style, source" in named[0]
    known = {key for _, key, value, _, _ in rows_of(bare) if value != "-"}
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render_table(bare, everything=True))
    assert "posterior_one_to_one" not in captured.get() and "entropy" in known
    assert verdict_lines(bare, "page.html", everything=True)[1] == [*lines, "Page: page.html"]


def test_the_table_names_every_figure(result):
    table = render_table(result, everything=True)
    measured = [key for _, key, value, _, _ in rows_of(result) if value != "-"]
    assert table.row_count > len(measured)  # sections stand apart
    short = render_table(result)
    assert 4 <= short.row_count < 16  # a screen, with the verdict above it
    assert "z0 = c" in table.caption


def test_no_row_of_the_first_screen_is_folded(result):
    """However wide figures are: long notes made two lines of each."""
    lost = {"latent": 0, "below": True, "retained": 0.4, "gain": -71.52, "gain_ci": [-76.8, -66.3]}
    lost |= {"written_gain": -71.5, "written_gain_ci": [-76.8, -66.3]}
    lost |= {"obeyed": None, "right": None}
    kept = {**lost, "latent": 1, "below": False, "retained": 1.0}
    table = render_table({**result, "retention": [lost, kept]})
    table.title = table.caption = None
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    assert len(lines) == table.row_count + 1, captured.get()  # and the headings
    assert "BELOW the original; 40% kept" in captured.get()


def test_an_interval_holds_its_value_and_counts_have_none(result):
    biased = {**result, "posterior": {**result["posterior"], "mutual_information_ci": [0.5, 0.9]}}
    shown = {key: interval for _, key, _, interval, _ in rows_of(biased)}
    assert shown["mutual_information"] == "0.500 to 1.099"
    assert shown["usage"] == shown["active"] == ""


def test_a_strategy_may_be_called_like_markup(result):
    named = {
        **result,
        "alignment": {
            **result["alignment"],
            "mapping": {"0": "[/a]", "1": "[red]", "2": ":smile:"},
        },
    }
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render_table(named))
    assert "z0 = [/a], z1 = [red], z2 = :smile:" in captured.get()


def test_what_is_left_over_is_reported(result):
    changed = {
        **result,
        "posterior": {**result["posterior"], "unused": [3, 5]},
        "alignment": {
            **result["alignment"],
            "mapping": {"0": "a", "1": None},
            "spare": {"1": "a"},
            "merged": {"b": 0},
        },
    }
    assert mapping_line(changed).splitlines() == [
        "",
        "z0 = a, z1 = a as well",
        "b has no latent of its own: z0 takes most of it",
        "unused: z3, z5",
    ]


def test_tokens_that_were_not_expected_stand_out():
    text = coloured([("a", 0.0), (" b", 0.5), (" c", 3.0)])
    assert text == (
        "a\x1b[33m b\x1b[0m\x1b[33m\x1b[2m[0.5]\x1b[0m\x1b[31m c\x1b[0m\x1b[31m\x1b[2m[3.0]\x1b[0m"
    )
