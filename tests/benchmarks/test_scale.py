import json
from pathlib import Path

import numpy as np

from benchmarks import pages, scale


def test_stages_say_their_time_and_memory(tmp_path, capsys):
    rows = 4000
    for stage in ("encode", "plan", "epoch"):
        scale.STAGES[stage](rows, tmp_path)
        found = json.loads(capsys.readouterr().out)
        assert found["processor"] > 0 and found["mib"] >= found["mib_before"] > 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == rows


def test_some_strategies_write_the_same_string_twice():
    encoded = scale.synthetic(64)
    distinct = np.unique(encoded.row_hash, axis=0)
    assert len(distinct) == 64 - 64 // 16
    assert np.array_equal(encoded.row_hash[0], encoded.row_hash[1])


def test_the_table_is_put_into_its_page(tmp_path, monkeypatch, capsys):
    figures = {"wall": 2.0, "processor": 1.0, "mib": 100.4, "mib_before": 90.0}
    monkeypatch.setattr(scale, "run", lambda rows, stages: dict.fromkeys(stages, figures))
    page = tmp_path / "page.md"
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*pages.marks(scale.PLACE)))
    options = ["--rows", "10", "2000000", "--only", "plan", "--out", str(tmp_path / "scale.json")]
    scale.main([*options, "--table", str(page)])
    text = page.read_text()
    assert "| 2,000,000 | 2,000,000 | 10 |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")
    found = json.loads((tmp_path / "scale.json").read_text())
    assert [one["rows"] for one in found] == [10, 2000000]
    assert json.loads(page.with_suffix(".json").read_text()) == found


def test_the_table_of_the_page_is_that_of_its_file():
    page = Path(__file__).parents[2] / "docs" / "tutorials" / "cluster.md"
    figures = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert figures and pages.between(page, scale.PLACE) == scale.table(figures)
