"""The README's commands and claims, run."""

import re
import shlex
import shutil
from pathlib import Path

from click.testing import CliRunner
from conftest import WORDS, make_model, make_records, make_tokenizer, write_jsonl

from twcli.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def prepare(folder):
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "train.jsonl", make_records(20, 4))
    write_jsonl(folder / "test.jsonl", make_records(5, 4, seed=1))


def call(line):
    arguments = shlex.split(line.replace("14 3 9 0 7", " ".join(WORDS[:3])))
    if arguments[1] == "train":
        arguments += ["--steps", "4"]
    result = CliRunner().invoke(main, arguments[1:])
    assert result.exit_code == 0, (line, result.output)


def test_the_pipeline_runs_as_written(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    (script,) = blocks("sh")
    lines = script.splitlines()
    assert lines[0] == "pip install ."
    for line in lines[1:]:
        call(line)
    # The Makefile's commands, then the Python that uses the result.
    shutil.rmtree("run")
    Path("train.bt.h5").unlink()
    (makefile,) = blocks("make")
    train, precompute = (line.strip() for line in makefile.splitlines() if line.startswith("\t"))
    call(precompute.replace("$<", "train.jsonl").replace("$@", "train.bt.h5"))
    call(train.replace("$<", "train.bt.h5"))
    (code,) = blocks("python")
    exec(compile(code.replace("14 3 9 0 7", "w0 w1"), "README.md", "exec"), {})


def test_the_file_tree_is_the_real_one():
    tree = README.split("## What is where", 1)[1]
    named = set(re.findall(r"\b(\w+\.py)\b", tree.split("tests/", 1)[0]))
    assert named == {p.name for p in (ROOT / "twcli").glob("*.py")} - {"__init__.py", "__main__.py"}
    for name in re.findall(r"\b(\w+\.py)\b", tree.split("examples/", 1)[1]):
        assert (ROOT / "examples" / name).is_file()


def test_every_make_target_is_in_the_makefile():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "lint", "clean"} <= targets
    assert set(re.findall(r"^    make (\w+)", README, re.MULTILINE)) <= targets
