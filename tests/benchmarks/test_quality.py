"""The table of tasks, seeds and losses: what it is made of, and what stands around it."""

import json
from pathlib import Path

from benchmarks import pages, quality

ROOT = Path(__file__).parents[2]


def result(generation, latents=4):
    """What `eval --json` prints, as far as a table has it."""
    return {
        "latents": latents,
        "alignment": {
            "generation_one_to_one": generation,
            "posterior_one_to_one": 1.0,
            "generation_many_to_one": generation,
            "coverage_mean": 0.9,
        },
        "answer_accuracy": None,
        "likelihood": {"gain": -0.25},
        "posterior": {"mutual_information": 1.25},
        "score": 0.75,
    }


def test_runs_of_a_folder_become_rows_between_the_marks(tmp_path):
    for seed, generation in ((0, 0.5), (1, 1.0)):
        folder = tmp_path / f"sorting_algorithms-{seed}"
        folder.mkdir()
        (folder / "ours.json").write_text(json.dumps(result(generation)))
        (folder / "other.json").write_text("{}")  # no variant
    runs = quality.figures_of(tmp_path)
    assert [(run["task"], run["seed"], run["variant"]) for run in runs] == [
        ("sorting_algorithms", 0, "ours"),
        ("sorting_algorithms", 1, "ours"),
    ]
    page = tmp_path / "page.md"
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*pages.marks(quality.PLACE)))
    pages.write(page, quality.PLACE, quality.tables, runs)
    text = page.read_text()
    row = "| sorting_algorithms | 2 | 4 | 0.750 (0.5 to 1) | 1.000 | 0.750 (0.5 to 1) | 0.900 | - |"
    assert f"{row} -0.250 | 1.250 | 0.750 |" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert json.loads(page.with_suffix(".json").read_text()) == runs
    pages.write(page, quality.PLACE, quality.tables, runs)
    assert page.read_text() == text


def test_the_tables_of_the_results_are_those_of_their_file():
    """Those between the marks; older ones below came before the file was written."""
    runs = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    written = pages.between(ROOT / "docs" / "results.md", quality.PLACE)
    assert runs and written == quality.tables(runs).strip()
