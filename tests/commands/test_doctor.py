"""The environment report: what it says, what it finds wrong, and what it must not show."""

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from packaging.requirements import Requirement

from twcli import __version__
from twcli.cli.main import main
from twcli.commands import doctor


def test_the_report_has_versions_threads_and_folders(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"- twcli {__version__}, Python 3.")
    assert f"torch {torch.__version__}" in result.stdout
    assert f"{torch.get_num_threads()} threads in torch" in result.stdout
    assert "OMP_NUM_THREADS=3" in result.stdout and "HF_TOKEN=set" in result.stdout
    assert "hub cache: " in result.stdout and "GiB free" in result.stdout
    assert "a-secret" not in result.stdout and str(Path.home()) + "/" not in result.stdout


def test_json_has_the_same_and_all_that_is_needed():
    found = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    needed = [Requirement(line) for line in metadata.requires("twcli-cvae")]
    assert {line.name for line in needed if line.marker is None} <= set(found["packages"])
    assert found["packages"]["h5py"] == metadata.version("h5py")
    assert "pytest" not in found["packages"]  # of [dev], which no command needs
    assert found["problems"] == []


def test_what_is_missing_or_too_old_is_a_problem(monkeypatch):
    real = metadata.version

    def version(name):
        if name in ("h5py", "peft"):
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "numpy" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "- PROBLEM: h5py is missing: pip install 'h5py>=" in result.stdout
    assert "- PROBLEM: numpy 0.1 is not >=" in result.stdout
    assert "peft missing" in result.stdout and "PROBLEM: peft" not in result.stdout
    assert result.stderr.startswith("twcli: ") and result.stderr.count("\n") == 1


def test_a_gpu_that_torch_does_not_see_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "_devices", list)
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    (problem,) = doctor.examine()["problems"]
    assert problem.startswith("nvidia-smi is there, but torch") and "CUDA build" in problem


def test_lines_fit_80_columns_and_folders_stay_whole(monkeypatch):
    place = "~/" + "a-folder-with-a-long-name/" * 2 + "hub"
    state = "not there yet, not writable, 1234.5 GiB free"
    folders = {"hub cache": {"path": place, "state": state}}
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(doctor, "_folders", lambda: folders)
    monkeypatch.setattr(doctor, "_cpu_name", lambda: "a processor's name " * 6)
    lines = CliRunner().invoke(main, ["doctor"]).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(("- ", "  ")) for line in lines)  # a list in Markdown
    (found,) = [number for number, line in enumerate(lines) if line.startswith("- hub cache: ")]
    assert place in lines[found]
    assert lines[found + 1].startswith("  ") and lines[found + 1].endswith("GiB free")


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/home/ann/.cache/hub", "~/.cache/hub"), ("/data/ann's secret/hub", ".../hub")],
)
def test_no_private_path_is_shown(monkeypatch, path, shown):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    assert doctor.public_path(Path(path)) == shown
