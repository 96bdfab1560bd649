"""The commands as functions, as a notebook calls them."""

import subprocess
import sys
import time

import pytest

import twcli
from tests.conftest import make_strategies, write_jsonl
from twcli import evaluate, precompute, train
from twcli.errors import UserError


@pytest.mark.slow
def test_a_notebook_goes_from_data_to_figures(model_dir, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", make_strategies(24, latents=2))
    files = {"model": model_dir, "data": data, "device": "cpu"}
    baseline = precompute(**files, out=str(tmp_path / "b.h5"))
    said, steps = [], []
    trained = train(
        **files,
        baseline=baseline,
        latents=2,
        steps=3,
        batch_tokens=300,
        out=str(tmp_path / "run"),
        say=said.append,
        on_step=steps.append,
    )
    assert [(m["step"], m["steps"]) for m in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(m["loss"] > 0 for m in steps)
    assert trained["run"] == str(tmp_path / "run") and 0 <= trained["score"] <= 1
    assert any("done" in line for line in said)
    figures = evaluate(run=trained["run"], data=data, device="cpu", bootstrap=20)
    assert figures["posterior"]["usage"] >= 1
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "model").is_dir()


def test_a_wrong_setting_is_one_line_of_an_error():
    with pytest.raises(UserError, match=r"^train: unknown key 'betta'"):
        train(betta=1)
    with pytest.raises(UserError, match="--model is required"):
        precompute(data="d.jsonl", out="b.h5")


def test_the_package_has_these_functions_and_imports_nothing_for_them():
    assert {"discover", "evaluate", "precompute", "train"} <= set(twcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        twcli.unknown  # noqa: B018
    code = "import sys, twcli, twcli.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_takes_little_of_a_processor():
    """The best of three: other processes on the same core slow one down."""
    from resource import RUSAGE_CHILDREN, getrusage

    def seconds():
        before = getrusage(RUSAGE_CHILDREN).ru_utime
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "twcli", "--help"], check=True, capture_output=True)
        return min(getrusage(RUSAGE_CHILDREN).ru_utime - before, time.monotonic() - start)

    assert min(seconds() for _ in range(3)) < 0.3
