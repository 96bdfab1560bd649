"""The benchmark's own arithmetic, on a model small enough for a test; its
figures are not judged here.
"""

import json
import subprocess
import sys
from datetime import date
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import bench, pages, workloads
from twcli.models import runtime


def tiny():
    return bench.llama(hidden=32, layers=2, heads=4, key_heads=2, inner=64, vocabulary=64)


def test_every_column_of_a_shape_is_the_same_loss():
    model = bench.latent_model(tiny(), 3)
    batch = bench.batch_of(6, 5, 2, 64)
    separate, gradients = bench.gradient(model, partial(bench.separate_passes, model, batch, True))
    gradients = [g.clone() for g in gradients]
    for execution in ("plain", "branches", "tree", "auto"):
        loss, others = bench.gradient(model, partial(bench.through, model, batch, execution))
        assert abs(loss - separate) <= 1e-5 * abs(separate)
        assert all(
            (a - b).norm() <= 1e-5 * b.norm() for a, b in zip(others, gradients, strict=True)
        )


def test_passes_one_after_another_have_the_gradient_of_all_at_once():
    model = bench.latent_model(tiny(), 3)
    batch = bench.batch_of(6, 5, 2, 64)
    _, expected = bench.gradient(model, partial(bench.separate_passes, model, batch, True))
    expected = [g.clone() for g in expected]
    model.zero_grad()
    workloads.one_after_another(model, batch)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert all((a - b).norm() <= 1e-5 * b.norm() for a, b in zip(found, expected, strict=True))


def test_the_default_recipes_columns_are_two_steps():
    model, read = bench.latent_model(tiny(), 3), []
    model.backbone.base_model.register_forward_pre_hook(
        lambda *_: read.append(torch.is_grad_enabled())
    )
    bench.default_recipe(model, bench.batch_of(6, 5, 2, 64))
    assert read[0] is False and all(read[1:]) and read[1:]
    assert model.head.outer.weight.grad is not None


def test_rows_and_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        bench,
        "SECTIONS",
        {
            "shapes": lambda repeats: bench.shape_rows("tiny", tiny, 8, 2, 6, 2, repeats),
            "start": lambda _: [bench.Row("late", 0.4, 0.3, "<=")],
        },
    )
    out = tmp_path / "build" / "bench.json"
    for section in ("start", "shapes"):  # a section at a time adds up
        bench.main(
            [
                "--out",
                str(out),
                "--table",
                str(tmp_path / "table.md"),
                "--only",
                section,
                "--repeats",
                "1",
            ]
        )
    found = json.loads(out.read_text())
    assert [row["section"] for row in found["rows"]] == ["shapes"] * 5 + ["start"]
    # float32, where the gradients of so small a model all but cancel
    assert found["rows"][0]["figure"] < 1e-3
    assert found["rows"][-1]["met"] is False and found["all_bars_met"] is False
    assert all(row["met"] is None and row["figure"] > 0 for row in found["rows"][3:5])
    assert "| late | 0.4 | at most 0.3 | **no** |" in (tmp_path / "table.md").read_text()
    assert "late" in capsys.readouterr().out
    beside = json.loads((tmp_path / "table.json").read_text())
    assert beside == found
    written = pages.between(tmp_path / "table.md", "bench")
    assert written == bench.tables(beside)["bench"].strip()
    assert written.startswith(date.today().isoformat())


def test_the_tables_of_the_page_are_those_of_its_file():
    """One that `make bench` did not write with its file does not stay on the page."""
    page = Path(__file__).parents[2] / "docs" / "benchmarks.md"
    file, text = page.with_suffix(".json"), page.read_text(encoding="utf-8")
    tables = bench.tables(json.loads(file.read_text())) if file.exists() else {}
    on_page = {name for name in ("bench", "gpu") if pages.marks(name)[0] in text}
    assert on_page == set(tables)
    assert all(pages.between(page, name) == tables[name].strip() for name in tables)
    columns = bench.COLUMNS.splitlines()[0]
    assert text.count(columns) == len(tables)


def test_a_figure_that_was_not_measured_does_not_meet_its_bar():
    assert bench.Row("x", None, 7.0).met is False and bench.Row("x", 1.0).met is None


def test_the_allocator_takes_both_settings():
    for keep in (False, True):
        runtime.tune_allocator(keep=keep)
        assert torch.zeros(2**20).sum() == 0


def test_a_call_that_timed_itself_is_believed():
    own = bench.Seconds(2.5, 1.5)
    assert bench.timed({"here": lambda: None, "elsewhere": lambda: own}, 1)["elsewhere"] == own


@pytest.mark.slow
def test_another_process_makes_a_pass_when_asked():
    call = [
        sys.executable,
        "-c",
        "from benchmarks import bench; bench.serve(lambda: print('chatter', sum(range(10**6))))",
    ]
    answers = subprocess.run(
        call, input="\n\n", capture_output=True, text=True, check=True, cwd=bench.ROOT
    ).stdout.split()
    assert (
        answers[0] == "ready"
        and len(answers) == 5
        and all(float(seconds) > 0 for seconds in answers[1:])
    )


@pytest.mark.slow
def test_a_large_parent_is_not_counted_as_its_childs_memory():
    held = b"x" * 2**30
    call = [
        sys.executable,
        "-c",
        "from benchmarks.bench import high_water; before = high_water(); "
        "held = b'x' * (64 * 2**20); print(before, high_water() - before)",
    ]
    before, more = map(
        float, subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
    )
    assert before < len(held) / 2**20 and more > 32


def test_rows_of_a_gpu_have_a_table_of_their_own():
    row = {
        "section": "start",
        "date": "2026-01-02",
        "name": "here",
        "figure": 1.0,
        "bar": None,
        "sign": ">=",
        "note": "",
        "met": None,
    }
    kept = {"machine": "m", "threads": 1, "rows": [row]}
    assert list(bench.tables(kept)) == ["bench"]
    there = {**row, "section": "gpu", "name": "there"}
    del there["date"]  # a file of an earlier version
    kept["rows"] = [row, there]
    found = bench.tables(kept)
    assert found["bench"].startswith("2026-01-02, `make bench`")
    assert found["gpu"].startswith("date not kept, `make bench`")
    assert "| here |" in found["bench"] and "| there |" not in found["bench"]
    assert "| there |" in found["gpu"] and "threads: 1; m." in found["bench"]


def test_a_step_of_a_posterior_that_has_decided_is_timed(monkeypatch):
    small = tiny()
    monkeypatch.setattr(bench, "llama", lambda: small)
    row = bench.decided(4, 3, 6, 2, 8, 1)
    assert row.figure > 0 and "8 records" in row.note
