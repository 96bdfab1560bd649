"""The short version of `make torture`; a process of its own, since victims are forked
from one without threads.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SECTIONS = {
    "kills": 9,
    "interrupts": 4,
    "faults": 14,
    "disk": 4,
    "flips": 80,
    "provenance": 10,
    "hostile": 45,
    "fuzz": 50,
    "writers": 9,
    "processes": 1,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("torture") / "t.json"
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--short", "--out", out],
        cwd=ROOT,
        env=env,
        text=True,
        capture_output=True,
    )
    assert out.is_file(), ended.stderr
    return json.loads(out.read_text())["sections"]


@pytest.mark.parametrize("section", SECTIONS)
def test_nothing_is_lost_and_nothing_wrong_is_trusted(found, section):
    assert found[section]["wrong"] == []
    assert sum(found[section]["tried"].values()) >= SECTIONS[section]
