"""`eval` and `sample` read records as the run's training did, unless something else is asked."""

import csv
import json

import pytest

from tests.conftest import make_records
from tests.test_cli import ok, refused
from twcli.config.evaluate import EvalConfig
from twcli.data.dataset import read_examples, stream_examples
from twcli.errors import UserError
from twcli.evaluation.ready_judges import read_references

RUN = {"format": "auto", "x_field": "Frage", "y_field": "Antwort"}


def table(path):
    """A table in which the usual names would be recognised as well, for another completion."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Frage", "question", "answer", "Antwort", "Stil"])
        for number, record in enumerate(make_records(20, 2)):
            writer.writerow([record["x"], "w0", "w1", record["y"], f"s{number % 2}"])
    return path


@pytest.fixture(scope="module")
def made(model_dir, tmp_path_factory):
    """Data and a run that was trained on two of its columns."""
    folder = tmp_path_factory.mktemp("fields")
    data = table(folder / "d.csv")
    flags = ("--model", model_dir, "--data", data, "--device", "cpu")
    named = ("--x-field", "Frage", "--y-field", "Antwort")
    ok("precompute", *flags, *named, "--out", folder / "b.h5")
    training = ("--baseline", folder / "b.h5", "--latents", 2, "--steps", 2)
    ok("train", *flags, *named, *training, "--out", folder / "run")
    return folder


def evaluated(made, *more):
    common = ("--data", made / "d.csv", "--device", "cpu", "--bootstrap", 10)
    return ("eval", "--run", made / "run", *common, *more)


@pytest.mark.slow
def test_eval_takes_the_columns_of_the_training(made):
    found = ok(*evaluated(made))
    assert "d.csv: Frage and Antwort, 40 records" in found.stderr
    assert "the records have question, Stil" in " ".join(found.stdout.split())
    other = ok(*evaluated(made, "--format", "question-answer"))
    assert "question-answer, 40 records; not read: Frage, Antwort" in other.stderr


@pytest.mark.slow
def test_references_of_a_judge_are_those_of_the_training(made):
    config = EvalConfig(run=str(made / "run"), data=str(made / "d.csv"))
    answers = {x: reference.answers for x, reference in read_references(config).items()}
    assert set(answers) == {record["x"] for record in make_records(20, 2)}


@pytest.mark.slow
def test_a_label_that_no_record_has_is_refused(made):
    says = "--strategy-field Stl: no record of "
    refused(*evaluated(made, "--strategy-field", "Stl"), says=[says, "label: question, Stil"])
    ok(*evaluated(made, "--strategy-field", "Stil"))


@pytest.mark.slow
def test_sample_takes_the_column_of_the_training(made):
    flags = ("--run", made / "run", "--latent", 0, "--max-new-tokens", 2, "--device", "cpu")
    lines = ok("sample", *flags, "--data", made / "d.csv").stdout.splitlines()
    asked = {record["x"] for record in make_records(20, 2)}
    assert {json.loads(line)["x"] for line in lines} <= asked
    refused("sample", *flags, "--x", " ", says="--x: is empty; give a prompt")


def test_records_without_those_columns_are_read_as_they_are(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"x": "a", "y": "b"}\n')
    assert read_examples(str(file), trained=RUN)[0].y == "b"
    file.write_text('{"Frage": "a", "Antwort": "b", "x": "c", "y": "d"}\n')
    assert read_examples(str(file), trained=RUN)[0].y == "b"
    assert read_examples(str(file), trained=RUN, y_field=None)[0].x == "a"
    assert read_examples(str(file), trained=RUN, x_field="x", y_field="Antwort")[0].x == "c"
    file.write_text('{"Frage": "a"}\n')
    with pytest.raises(UserError, match="format not recognised"):
        stream_examples(str(file), trained=RUN)


@pytest.mark.slow
def test_what_is_inspected_fits_80_columns(made, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for path in (made / "run", made / "b.h5"):
        for line in ok("inspect", path).stdout.splitlines():
            # a hash or a path is one word
            assert len(line) <= 80 or len(line.split()) == 1, line
