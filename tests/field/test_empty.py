"""Records without text in prompt or completion: they stop a call, or are left out and counted."""

import json

import pytest

from tests.conftest import make_records, write_jsonl
from tests.test_cli import ok, refused
from twcli.data.dataset import read_examples, stream_examples
from twcli.errors import UserError

SKIP = ("--empty", "skip")


def with_gaps():
    """Forty records; those of lines 2, 3, 7 and 9 have nothing to learn or to ask."""
    records = make_records(20, 2)
    records[1]["y"], records[2]["y"] = "", None
    records[6]["x"], records[8]["y"] = " ", float("nan")
    return records


@pytest.mark.slow
def test_from_precompute_to_sample(model_dir, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", with_gaps())
    common = ("--data", data, "--device", "cpu")
    flags = ("--model", model_dir, *common)
    file = tmp_path / "b.h5"
    says = "3 others of the file as well: 3, 7, 9"
    refused(
        "precompute", *flags, "--out", file, says=["leave all such out with --empty skip", says]
    )
    said = ok("precompute", *flags, *SKIP, "--out", file).stderr
    assert "x and y, 40 records, 36 completions" in said
    assert "what is empty is left out, in 4 records: 2, 3, 7, 9" in said
    found = json.loads(ok("inspect", file, "--json").stdout)
    assert found["rows"] == 36 and found["fingerprint"]["empty"] == {"skip": 4}
    ok("inspect", file, "--verify", "--model", model_dir, "--data", data)
    training = ("--baseline", file, "--latents", 2, "--steps", 2)
    ok("train", *flags, *SKIP, *training, "--out", tmp_path / "run")
    names = tmp_path / "names.jsonl"
    said = ok("discover", *flags, *SKIP, "--latents", 2, "--out", names, "--json").stdout
    assert "--empty skip" in json.loads(said)["command"]
    assert len(names.read_text().splitlines()) == 36
    shown = ok(
        "eval",
        "--run",
        tmp_path / "run",
        *common,
        *SKIP,
        "--bootstrap",
        10,
        "--judge",
        "exact",
        "--json",
    )
    assert json.loads(shown.stdout)["likelihood"]["gain"] is not None
    drawn = ok("sample", "--model", model_dir, *common, *SKIP, "--max-new-tokens", 2)
    assert "in 1 record: 7" in drawn.stderr  # its completions are not read
    refused("sample", "--model", model_dir, *common, says="d.jsonl:7: field 'x' is empty")


def test_a_cache_of_other_records_is_refused(model_dir, tmp_path):
    """The empty record is of a prompt and a completion that others have as well."""
    records = make_records(4, 2)
    data = write_jsonl(tmp_path / "d.jsonl", [*records, {"x": "w1", "y": ""}])
    flags = ("--model", model_dir, "--data", data, "--device", "cpu")
    ok("precompute", *flags, *SKIP, "--out", tmp_path / "b.h5")
    write_jsonl(tmp_path / "d.jsonl", records)
    training = ("--baseline", tmp_path / "b.h5", "--latents", 2, "--steps", 2)
    says = ["made with another empty", "with --too-long, --empty and"]
    refused("train", *flags, *training, "--out", tmp_path / "run", says=says)


def test_of_several_completions_only_the_empty_ones_are_left_out(tmp_path):
    records = [
        {"prompt": "a", "completions": ["b", "", None, "c"]},
        {"prompt": "d", "completions": []},
        {"prompt": "e", "completions": ["f"]},
    ]
    data = write_jsonl(tmp_path / "d.jsonl", records)
    with pytest.raises(UserError, match=r"d.jsonl:1: field 'completions\[1\]' is empty; .*: 2$"):
        read_examples(data)
    examples = stream_examples(data, empty="skip")
    assert [(e.x, e.y) for e in examples] == [("a", "b"), ("a", "c"), ("e", "f")]
    assert examples.left_out == 2
    assert "3 records; what is empty is left out, in 2 records: 1, 2" in examples.summary()


def test_turns_without_text(tmp_path):
    user, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    records = [
        {"messages": [user, said]},
        {"messages": [user, {**said, "content": ""}]},
        {"messages": [user, {**said, "content": None}]},
    ]
    data = write_jsonl(tmp_path / "d.jsonl", records)
    examples = stream_examples(data, empty="skip", each_turn=True)
    assert [e.y for e in examples] == ["b"] and examples.left_out == 2


def test_a_file_without_any_text_is_refused(tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", [{"x": "a", "y": ""}] * 3)
    with pytest.raises(UserError, match=r"d.jsonl: of 3 records none has text"):
        read_examples(data, empty="skip")
