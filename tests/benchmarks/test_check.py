"""Whether a fall of speed is seen, on constructed figures; nothing is measured here."""

import json
import math

import pytest

from benchmarks import check, pages
from benchmarks.check import HIGHER, LOWER, Ratio, fallen


@pytest.mark.parametrize(
    ("before", "now", "better", "fell"),
    [
        (2.0, 1.81, HIGHER, False),
        (2.0, 1.79, HIGHER, True),
        (2.0, 5.0, HIGHER, False),
        (2.0, 2.2, LOWER, False),
        (2.0, 2.25, LOWER, True),
        (2.0, 0.5, LOWER, False),
        (0.5, math.nan, HIGHER, True),
        (0.5, 0.0, LOWER, True),
    ],
)
def test_a_fall_of_more_than_a_tenth_is_seen_in_either_direction(before, now, better, fell):
    found = fallen({"a": Ratio(before, better)}, {"a": Ratio(now, better)})
    assert bool(found) is fell


def test_a_ratio_that_is_no_longer_measured_counts_as_fallen():
    stored = {"a": Ratio(2.0), "b": Ratio(3.0)}
    found = fallen(stored, {"a": Ratio(1.0), "new": Ratio(1.0)})
    assert found == {"a": "was 2, is 1, 50% worse", "b": "was 3, is not measured"}


def test_what_seems_slower_is_measured_once_more_and_the_better_figure_counts():
    turns = []

    def part(figures, count):
        turns.append(count)
        return {"a": Ratio(figures.pop(0)), "b": Ratio(figures.pop(0), LOWER)}

    stored = {"a": Ratio(2.0), "b": Ratio(2.0, LOWER)}
    said = []
    for figures, fell in (
        ([2.0, 2.0], []),
        ([1.0, 2.0, 1.9, 9.0], []),
        ([1.0, 2.0, 1.1, 9.0], ["a"]),
        ([2.0, 9.0, 2.0, 8.0], ["b"]),
    ):
        found = check.check(stored, {"part": lambda n, f=figures: part(f, n)}, said.append)
        assert list(found) == fell and figures == []
    assert turns == [3, 3, 6, 3, 6, 3, 6]
    assert sum("once more" in line for line in said) == 3


@pytest.fixture
def constructed(monkeypatch):
    """Ratios of a part that is not measured, to be changed."""
    ratios = {"a": Ratio(2.0), "b": Ratio(3.0, LOWER)}
    monkeypatch.setattr(check, "PARTS", {"part": lambda _turns: dict(ratios)})
    return ratios


def test_figures_are_kept_by_machine_and_compared_with_its_own(
    constructed, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "figures.json"
    page = tmp_path / "page.md"
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*pages.marks(check.TABLE)))
    call = ["--figures", str(file), "--table", str(page)]
    assert check.main(call) == 2 and "no ratios of this machine" in capsys.readouterr().err
    assert check.main([*call, "--store"]) == 0
    (kept,) = json.loads(file.read_text()).values()
    assert {"date", "command", "versions", "threads", "ratios"} == set(kept)
    assert kept["ratios"]["b"] == {"figure": 3.0, "better": "lower"}
    assert "torch" in kept["versions"]
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| a | 2 |" in text and kept["date"] in text
    assert check.main(call) == 0
    constructed["a"] = Ratio(1.7)
    assert check.main(call) == 1
    assert "fell: a: was 2, is 1.7, 15% worse" in capsys.readouterr().err
    monkeypatch.setattr(check, "machine", lambda: "another")
    assert check.main(call) == 2
    assert check.main([*call, "--store"]) == 0 and len(json.loads(file.read_text())) == 2
    assert check.main(call) == 0


def test_what_is_stored_in_the_repository_can_be_read_and_is_what_is_measured():
    entries = json.loads(check.FIGURES.read_text())
    assert entries
    for name, entry in entries.items():
        ratios = check.read(check.FIGURES, name)
        assert len(ratios) == 12 and all(ratio.figure > 0 for ratio in ratios.values())
        assert entry["threads"] == 1 and entry["date"] and entry["command"]
        assert sum(ratio.better == LOWER for ratio in ratios.values()) == 4


def test_the_ratios_of_the_page_are_those_that_are_stored():
    written = pages.between(check.PAGE, check.TABLE)
    assert written == check.table(json.loads(check.FIGURES.read_text())).strip()
