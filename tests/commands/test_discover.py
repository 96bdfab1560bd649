"""`twcli discover` on a tiny model, and `twcli train --names` with what it wrote."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest

from tests.conftest import (
    make_model,
    make_strategies,
    make_tokenizer,
    matched,
    strategies_of,
    write_jsonl,
)
from tests.test_cli import ok, refused, twcli
from twcli.commands import discover as command
from twcli.commands import frozen_reading
from twcli.commands.discover import closing_line, page_path, verdict_of
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.discovery.prior import LatentPrior
from twcli.discovery.result import Naming
from twcli.storage.beside import features_path
from twcli.storage.run_folder import RunFolder

RECORDS = make_strategies(60)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model, data and the names of it; tests must not change them."""
    folder = tmp_path_factory.mktemp("discovered")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "data.jsonl", RECORDS)
    ok("discover", *flags(folder), "--latents", 3, "--out", folder / "names.jsonl")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """The names, their features and page, to be changed."""
    for path in made.glob("names.*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def flags(made):
    return ("--model", made / "model", "--data", made / "data.jsonl", "--device", "cpu")


@pytest.fixture
def afresh(made, tmp_path):
    """The flags of a call beside whose data nothing lies."""
    data = shutil.copy(made / "data.jsonl", tmp_path / "data.jsonl")
    return ("discover", "--model", made / "model", "--data", data, "--device", "cpu")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def never(*_args, **_how):
    raise AssertionError("the model was read")


def hashes_of(records):
    encoded = ExampleEncoder(make_tokenizer(), "tiny").encode(
        [Example(r["x"], r["y"]) for r in records], max_length=128, source="d"
    )
    return [row.tobytes().hex() for row in encoded.row_hash]


@pytest.mark.slow
def test_names_are_written_one_line_a_record(made):
    lines = lines_of(made / "names.jsonl")
    assert [line["row"] for line in lines] == list(range(60))
    assert [line["hash"] for line in lines] == hashes_of(RECORDS)
    latents = np.array([line["latent"] for line in lines])
    assert matched(latents, strategies_of(RECORDS), 3) > 0.9
    assert all(0 <= line["probability"] <= 1 for line in lines)


@pytest.mark.slow
def test_the_page_and_the_features_lie_beside_the_names(made):
    assert page_path(str(made / "names.jsonl")) == made / "names.html"
    page = (made / "names.html").read_text()
    assert "<html" in page and any(record["y"] in page for record in RECORDS)
    with h5py.File(features_path(str(made / "names.jsonl"))) as file:
        assert len(file["values"]) == len({(r["x"], r["y"]) for r in RECORDS})
    assert {path.name for path in made.iterdir()} == {
        "model",
        "data.jsonl",
        "names.jsonl",
        "names.html",
        "names.features.h5",
        "names.features.h5.lock",
        "names.bt.h5",
        "names.bt.h5.lock",
    }


@pytest.mark.slow
def test_json_says_what_was_found(made, copy):
    result = ok(
        "discover",
        *flags(made),
        *("--latents", 3, "--out", copy / "names.jsonl", "--overwrite", "--json"),
    )
    found = json.loads(result.stdout)
    assert {
        "latents",
        "used",
        "proportions",
        "repulsion",
        "score",
        "chance",
        "stability",
        "per_latents",
    } <= set(found)
    assert (found["latents"], found["used"], found["records"]) == (3, 3, 60)
    assert sum(found["proportions"]) == pytest.approx(1)
    lines = lines_of(copy / "names.jsonl")
    counts = np.bincount([line["latent"] for line in lines])
    assert found["proportions"] == pytest.approx((counts / 60).tolist())
    assert found["chance"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["repulsion"] == 0.0 and 0 < found["stability"] <= 1
    assert [count["latents"] for count in found["per_latents"]] == [2, 3, 4]
    assert [card["latent"] for card in found["latent_cards"]] == [0, 1, 2]
    assert all(RECORDS[row["row"]]["y"] == row["y"] for row in found["ambiguous"])


def test_names_by_chance_are_not_advised_for_training():
    found = {"records": 9, "named": 9, "names": "n.jsonl", "command": "twcli train", "chance": 0.5}
    by_chance = closing_line({**found, "score": 0.52})
    assert (
        by_chance == "n.jsonl: 9 records named by chance; training on these names teaches nothing"
    )
    good = closing_line({**found, "score": 0.9, "named": 8})
    assert good.startswith("n.jsonl: 8 of 9 records named; 1 have null") and "twcli train" in good


@pytest.mark.slow
def test_names_that_may_have_been_edited_are_not_replaced_unasked(made, copy):
    before = (copy / "names.jsonl").read_bytes()
    refused(
        "discover",
        *flags(made),
        *("--out", copy / "names.jsonl"),
        says=["names.jsonl: exists and may have been edited", "--overwrite"],
    )
    assert (copy / "names.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("change", [("--latents", 2), ("--latents", 3, "--seed", 5)])
def test_another_number_or_seed_reads_no_model_again(made, copy, monkeypatch, change):
    monkeypatch.setattr(frozen_reading, "embed_and_score", never)
    out = copy / "names.jsonl"
    result = ok("discover", *flags(made), *change, "--out", out, "--overwrite")
    assert "60 distinct records, from" in result.stderr
    assert {line["latent"] for line in lines_of(out)} <= set(range(change[1]))


@pytest.mark.slow
def test_the_same_call_writes_the_same_names(made, copy):
    out = copy / "names.jsonl"
    ok("discover", *flags(made), "--latents", 3, "--out", out, "--overwrite")
    assert out.read_bytes() == (made / "names.jsonl").read_bytes()


@pytest.mark.slow
def test_features_of_other_data_are_read_again(made, copy):
    data = write_jsonl(copy / "other.jsonl", make_strategies(40, seed=7))
    out = copy / "names.jsonl"
    other = ("--model", made / "model", "--data", data, "--device", "cpu", "--latents", 2)
    out.unlink()
    refused("discover", *other, "--out", out, says=["names.features.h5", "--overwrite"])
    ok("discover", *other, "--out", out, "--overwrite")
    assert len(lines_of(out)) == 40


@pytest.mark.slow
def test_a_call_that_was_cut_off_resumes(made, afresh, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SHARD_ROWS", 20)
    read, reads = frozen_reading.embed_and_score, []

    def cut(model, encoder, encoded, rows, **how):
        if len(reads) == 1:
            raise KeyboardInterrupt
        reads.append(rows)
        return read(model, encoder, encoded, rows, **how)

    monkeypatch.setattr(frozen_reading, "embed_and_score", cut)
    call = (*afresh, "--latents", 3, "--out", tmp_path / "names.jsonl")
    result = twcli(*call)
    assert result.exit_code == 130, result.stderr
    assert not (tmp_path / "names.jsonl").exists()
    assert "same command again" in result.stderr.splitlines()[-1]
    again = []

    def watched(model, encoder, encoded, rows, **how):
        again.append(rows)
        return read(model, encoder, encoded, rows, **how)

    monkeypatch.setattr(frozen_reading, "embed_and_score", watched)
    ok(*call)
    assert sorted(np.concatenate(reads + again).tolist()) == list(range(60))
    assert len(reads) == 1 and len(again) == 2
    assert (tmp_path / "names.jsonl").read_bytes() == (made / "names.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "data.jsonl",
        "names.jsonl",
        "names.html",
        "names.features.h5",
        "names.features.h5.lock",
        "names.bt.h5",
        "names.bt.h5.lock",
    }


@pytest.mark.slow
def test_a_call_that_was_cut_off_at_its_page_makes_it(made, afresh, tmp_path, monkeypatch):
    """Names without their page would stand in the way of the same command."""
    render = command.render_names_page

    def cut(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "render_names_page", cut)
    call = (*afresh, "--latents", 3, "--out", tmp_path / "names.jsonl")
    assert twcli(*call).exit_code == 130
    assert not (tmp_path / "names.jsonl").exists()
    monkeypatch.setattr(command, "render_names_page", render)
    ok(*call)
    assert (tmp_path / "names.html").exists()
    assert (tmp_path / "names.jsonl").read_bytes() == (made / "names.jsonl").read_bytes()


@pytest.mark.slow
def test_a_failure_in_the_middle_keeps_what_was_read(afresh, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SHARD_ROWS", 20)
    read, count = frozen_reading.embed_and_score, []

    def failing(model, encoder, encoded, rows, **how):
        count.append(len(rows))
        found = read(model, encoder, encoded, rows, **how)
        if len(count) == 2:
            found[0].kinds[0][0, 0] = np.nan
        return found

    monkeypatch.setattr(frozen_reading, "embed_and_score", failing)
    call = (*afresh, "--latents", 3, "--out", tmp_path / "names.jsonl")
    result = twcli(*call)
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith("twcli")
    assert not (tmp_path / "names.jsonl").exists()
    ok(*call)
    assert count == [20, 20, 20, 20]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--out": "nowhere/names.jsonl"}, "name a file in a folder that exists"),
        ({"--out": "."}, ".: exists"),
        ({"--latents": "1"}, "--latents: 1 is too small"),
        ({"--latents": "several"}, "'several' is no number"),
        ({"--data": "none.jsonl"}, "none.jsonl"),
        ({"--model": "/none/model"}, "/none/model"),
    ],
)
def test_what_is_wrong_is_one_line(made, tmp_path, monkeypatch, change, says):
    monkeypatch.chdir(tmp_path)
    call = {
        "--model": made / "model",
        "--data": made / "data.jsonl",
        "--out": tmp_path / "names.jsonl",
        **change,
    }
    refused("discover", *(part for pair in call.items() for part in pair), says=says)
    assert list(tmp_path.iterdir()) == []


def hinted(names, kept):
    """A names file with null but for the first rows."""
    lines = lines_of(names)
    for line in lines[kept:]:
        line.update(latent=None, probability=None)
    return write_jsonl(names.with_name("hints.jsonl"), lines)


@pytest.mark.slow
def test_records_are_named_after_those_that_have_names(made, copy, monkeypatch):
    monkeypatch.setattr(command, "_read_from_model", never)
    before = lines_of(copy / "names.jsonl")
    hints = hinted(copy / "names.jsonl", 24)
    out = copy / "names.out.jsonl"
    result = ok("discover", *flags(made), "--names", hints, "--out", out, "--json")
    found = json.loads(result.stdout)
    assert found["latents"] == 3 and found["given"] == 24 and found["stability"] is None
    assert 0 <= found["score"] <= 1 and "24 given names" in found["verdict"]
    after = lines_of(out)
    assert [line["latent"] for line in after[:24]] == [line["latent"] for line in before[:24]]
    latents = np.array([line["latent"] for line in after])
    assert matched(latents, strategies_of(RECORDS), 3) > 0.9


@pytest.mark.slow
def test_the_given_names_are_not_replaced(made, copy):
    names = copy / "names.jsonl"
    before = names.read_bytes()
    refused(
        "discover",
        *flags(made),
        *("--names", names, "--out", names, "--overwrite"),
        says="is --names, which would be replaced; name another --out",
    )
    assert names.read_bytes() == before


def test_given_names_that_say_nothing_are_called_so():
    naming = Naming(
        latent_N=np.arange(60) % 2,
        probability_N=np.ones(60, np.float32),
        second_N=np.arange(60) % 2,
        prior=LatentPrior(np.array([0.5, 0.5]), 0.0),
        latents=2,
        used=2,
        score=0.52,
        stability=None,
        given=40,
        one_string=False,
        prompts=60,
    )
    assert "40 given names cannot be predicted" in verdict_of(naming)
    other = dataclasses.replace(naming, score=0.6, given=0, likelier=3)
    assert "3 have far more support: try --latents 3" in verdict_of(other)
    better = dataclasses.replace(naming, score=0.95)
    assert "95% of the records" in verdict_of(better)
    assert "going by 40 given names that were left out" in verdict_of(better)


@pytest.mark.slow
def test_too_few_records_are_refused(made, tmp_path):
    data = write_jsonl(tmp_path / "few.jsonl", RECORDS[:3])
    refused(
        "discover",
        *("--model", made / "model", "--data", data, "--out", tmp_path / "n.jsonl"),
        "--quiet",
        says=["few.jsonl", "too few distinct records"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["names.html", "data.jsonl"])
def test_a_page_replaces_neither_the_names_nor_the_data(made, tmp_path, name):
    data = tmp_path / "data.jsonl"
    shutil.copy(made / "data.jsonl", data)
    result = twcli(
        *("discover", "--model", made / "model", "--data", data, "--device", "cpu"),
        *("--latents", 3, "--out", tmp_path / name, "--overwrite"),
    )
    assert result.exit_code == 2 and "name " in result.stderr.splitlines()[-1]
    assert data.read_bytes() == (made / "data.jsonl").read_bytes()


# training with names


@pytest.fixture(scope="module")
def baseline(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("baseline") / "b.h5"
    ok("precompute", *flags(made), "--out", path)
    return path


@pytest.fixture
def train(made, baseline):
    """The flags of a short training."""
    return (
        *("train", *flags(made), "--baseline", baseline),
        *("--steps", 2, "--batch-tokens", 200),
    )


def edited(path, change):
    """The names at `path` after each line went through `change`."""
    lines = lines_of(path)
    for line in lines:
        change(line)
    write_jsonl(path, lines)
    return path


def held_latents(monkeypatch):
    """What a training holds its rows at, filled while it runs."""
    from twcli.training import trainer

    seen, fit = {}, trainer.fit

    def watched(setup, say):
        seen.update(latent_N=setup.latent_N.copy(), naming=setup.naming, used=setup.used)
        return fit(setup, say)

    monkeypatch.setattr(trainer, "fit", watched)
    return seen


@pytest.mark.slow
def test_a_training_holds_the_names(made, train, tmp_path, monkeypatch):
    seen = held_latents(monkeypatch)
    result = ok(*train, "--names", made / "names.jsonl", "--out", tmp_path / "run")
    assert "60 records of" in result.stderr and "3 latents" in result.stderr
    lines = lines_of(made / "names.jsonl")
    assert seen["latent_N"].tolist() == [line["latent"] for line in lines]
    run = RunFolder(tmp_path / "run")
    assert run.read_config().latents == 3
    assert {m["stage"] for m in run.read_metrics()} == {"hold"}  # to the end, unless told
    assert run.read_naming()["latents"] == 3 and run.read_naming()["one_string"] is False
    assert (
        "already trained"
        in ok(*train, "--names", made / "names.jsonl", "--out", tmp_path / "run").stderr
    )


@pytest.mark.slow
def test_a_training_with_names_reads_no_features_for_them(made, train, tmp_path, monkeypatch):
    monkeypatch.setattr("twcli.training.warm_start.name_rows", never)
    ok(*train, "--names", made / "names.jsonl", "--out", tmp_path / "run")


@pytest.mark.slow
def test_edited_names_are_taken_and_what_is_null_is_found(made, train, copy, monkeypatch):
    """The first latent is called 2 and the last one 0 by a person who names half of the rows."""
    before = [line["latent"] for line in lines_of(copy / "names.jsonl")]

    def change(line):
        if line["row"] % 2:
            line.update(latent=None, probability=None)
        else:
            line.update(latent=2 - line["latent"], note="seen")

    seen = held_latents(monkeypatch)
    names = edited(copy / "names.jsonl", change)
    result = ok(*train, "--names", names, "--latents", 3, "--out", copy / "run")
    assert "names: 30 of 60 records of" in result.stderr
    wanted = 2 - np.array(before)
    assert np.array_equal(seen["latent_N"][::2], wanted[::2])
    assert (seen["latent_N"][1::2] == wanted[1::2]).mean() > 0.8


@pytest.mark.slow
def test_names_of_which_one_was_merged_into_another_train(made, train, copy, monkeypatch):
    """Latents 0 and 2 are left; rows of the latter are trained, not passed over."""

    def change(line):
        line["latent"] = 0 if line["latent"] == 1 else line["latent"]

    seen = held_latents(monkeypatch)
    names = edited(copy / "names.jsonl", change)
    ok(*train, "--names", names, "--out", copy / "run")
    assert set(seen["latent_N"]) == {0, 2} and seen["used"] == 3
    assert RunFolder(copy / "run").read_config().latents == 3


BAD = {
    "other data": (lambda line: line.update(hash="0" * 32), "field 'hash' differs"),
    "unknown latent": (lambda line: line.update(latent=3), "unknown latent 3"),
    "negative": (lambda line: line.update(latent=-2), "is negative"),
    "no number": (lambda line: line.update(latent="two"), "must be a whole number"),
    "probability": (lambda line: line.update(probability=1.2), "outside 0 to 1"),
    "no probability": (lambda line: line.pop("probability"), "field 'probability' is missing"),
    "order": (lambda line: line.update(row=line["row"] + 1), "field 'row'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_a_bad_names_file_is_one_line(train, copy, case):
    change, says = BAD[case]
    edited(copy / "names.jsonl", lambda line: line["row"] == 4 and change(line))
    refused(
        *train,
        *("--names", copy / "names.jsonl", "--latents", 3, "--out", copy / "run", "--quiet"),
        says=["names.jsonl:5", says],
    )
    assert not (copy / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_names_and_their_number_must_agree(made, train, tmp_path):
    names = ("--names", made / "names.jsonl")
    refused(
        *train,
        *names,
        *("--latents", 2, "--out", tmp_path / "run", "--quiet"),
        says=["names.jsonl:", "unknown latent 2", "--latents is 2"],
    )
    refused(*train, *names, "--latents", "auto", "--out", tmp_path / "r", says="--latents auto")
    refused(*train, *names, "--warm-start", "none", "--out", tmp_path / "r", says="--names")
    refused(*train, "--warm-start", "none", "--out", tmp_path / "r", says="give a number")
    refused(
        *train,
        *("--names", tmp_path / "none.jsonl", "--out", tmp_path / "r", "--quiet"),
        says=["none.jsonl: no such file", "twcli discover"],
    )


@pytest.mark.slow
def test_names_of_other_data_are_refused(made, baseline, copy):
    data = write_jsonl(copy / "other.jsonl", make_strategies(60, seed=9))
    ok("precompute", "--model", made / "model", "--data", data, "--out", copy / "b.h5")
    refused(
        *("train", "--model", made / "model", "--data", data, "--baseline", copy / "b.h5"),
        *("--names", copy / "names.jsonl", "--steps", 2, "--out", copy / "run", "--quiet"),
        says=["names.jsonl:1", "belongs to other data"],
    )


@pytest.mark.slow
def test_all_latents_null_need_a_number(train, copy):
    edited(copy / "names.jsonl", lambda line: line.update(latent=None, probability=None))
    names = ("--names", copy / "names.jsonl", "--out", copy / "run")
    refused(*train, *names, "--quiet", says=["is null on every line", "--latents"])
    ok(*train, *names, "--latents", 3)
