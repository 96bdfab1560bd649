"""One reading of the frozen model for `discover`, `precompute` and `train`: how many rows go into
it, that what is found is what would have been computed, and that nothing stale is taken.
"""

import json
import shutil

import h5py
import numpy as np
import pytest

from tests.conftest import make_model, make_strategies, make_tokenizer, write_jsonl
from tests.test_cli import ok, refused, twcli
from twcli.commands import frozen_reading
from twcli.discovery import features
from twcli.models import baseline, forward
from twcli.storage.beside import baseline_path, features_path
from twcli.storage.cache import Cache
from twcli.storage.feature_store import FeatureStore

pytestmark = pytest.mark.slow  # two of its fixtures alone take three seconds

DISTINCT = make_strategies(60)
RECORDS = [*DISTINCT, *DISTINCT[5:15], *DISTINCT[:3]]  # 13 of them come again


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def given(model, folder):
    """The flags of a call with data in `folder`."""
    data = write_jsonl(folder / "data.jsonl", RECORDS)
    return ("--model", model, "--data", data, "--device", "cpu")


@pytest.fixture
def inputs(model, tmp_path):
    """The flags of a call beside whose data nothing lies."""
    return given(model, tmp_path)


def count_rows(patch, counts):
    """Adds to `counts` how many rows each call of `forward_rows` gets."""
    read = forward.forward_rows

    def counted(model, encoded, rows, *others, **how):
        counts.append(len(rows))
        return read(model, encoded, rows, *others, **how)

    for module in (baseline, features):
        patch.setattr(module, "forward_rows", counted)


@pytest.fixture
def rows_read(monkeypatch):
    counts = []
    count_rows(monkeypatch, counts)
    return counts


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """Where `discover` has been, how many rows it read at a time, and what it said."""
    folder, counts = tmp_path_factory.mktemp("made"), []
    with pytest.MonkeyPatch.context() as patch:
        count_rows(patch, counts)
        said = ok(
            *("discover", *given(model, folder), "--latents", 3),
            *("--out", folder / "names.jsonl", "--json"),
        )
    return folder, counts, json.loads(said.stdout)


@pytest.fixture
def left(made, tmp_path):
    """Names, features and b_t lie beside the data."""
    for path in made[0].glob("names.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "names.jsonl"


def values_of(path):
    with Cache(path) as cache:
        assert not cache.verify()
        return cache.read(np.arange(cache.rows))[0]


def in_one_line(result):
    return " ".join(result.stderr.split())


def test_discover_leaves_the_b_t_that_precompute_computes(made, inputs, tmp_path):
    folder, counts, said = made
    assert sum(counts) == len(DISTINCT)
    found = baseline_path(folder / "names.jsonl")
    assert said["baseline"] == str(found) and f"--baseline {found}" in said["command"]
    ok("precompute", *inputs, "--out", tmp_path / "own.h5", "--execution", "plain")
    with Cache(found) as one, Cache(tmp_path / "own.h5") as other:
        assert one.fingerprint == other.fingerprint
    with h5py.File(found) as one, h5py.File(tmp_path / "own.h5") as other:
        assert np.array_equal(one["row_hash"], other["row_hash"])
    expected = values_of(tmp_path / "own.h5")
    assert expected.std() > 0.5
    assert np.abs(values_of(found) - expected).max() <= 1e-5


def test_precompute_copies_what_discover_has_read(inputs, left, rows_read):
    out, found = left.with_name("b.h5"), baseline_path(left)
    result = ok("precompute", *inputs, "--out", out)
    assert rows_read == []
    assert f"b.h5: a copy of {found}, which has b_t of these 73 rows" in in_one_line(result)
    assert out.read_bytes() == found.read_bytes()
    assert "already complete" in ok("precompute", *inputs, "--out", out).stderr


def test_discover_reads_nothing_after_precompute(made, inputs, tmp_path, rows_read):
    ok("precompute", *inputs, "--out", tmp_path / "b.h5")
    assert sum(rows_read) == len(DISTINCT)
    rows_read.clear()
    names = tmp_path / "names.jsonl"
    said = in_one_line(ok("discover", *inputs, "--latents", 3, "--out", names))
    assert rows_read == []
    assert "60 distinct records, from" in said
    assert f"--baseline {tmp_path / 'names.bt.h5'}" in said
    assert (tmp_path / "names.bt.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert names.read_bytes() == (made[0] / "names.jsonl").read_bytes()


@pytest.mark.parametrize("named", [False, True])
def test_a_training_takes_the_features_that_are_there(inputs, left, rows_read, named):
    result = ok(
        *("train", *inputs, "--baseline", baseline_path(left), "--out", left.with_name("run")),
        *("--steps", 2, "--batch-tokens", 200),
        *(("--names", left) if named else ("--latents", 3)),
    )
    assert "60 distinct records, from" in result.stderr
    assert len(RECORDS) > 64 >= max(rows_read)  # so many are compared with the cache


def test_features_without_b_t_are_completed(inputs, left, rows_read):
    expected = values_of(baseline_path(left))
    baseline_path(left).unlink()
    ok("discover", *inputs, "--latents", 3, "--out", left, "--overwrite")
    assert rows_read == [len(DISTINCT)]
    assert np.abs(values_of(baseline_path(left)) - expected).max() <= 1e-5


def test_what_is_of_other_records_a_model_or_a_precision_is_not_taken(
    inputs, model, left, rows_read
):
    left.unlink()
    other, changed = left.with_name("other"), left.with_name("changed.jsonl")
    make_model(seed=5).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    write_jsonl(changed, [*RECORDS[:-1], {"x": "w1", "y": "w2"}])
    for call in (
        ("--model", other, *inputs[2:]),
        (*inputs[:2], "--data", changed, *inputs[4:]),
        (*inputs, "--precision", "bf16"),
    ):
        rows_read.clear()
        out = ("--out", left.with_name("b.h5"), "--overwrite")
        ok("precompute", *call, *out, "--execution", "plain")
        assert sum(rows_read) >= len(DISTINCT)
        rows_read.clear()
        refused("discover", *call, "--out", left, says=["names.features.h5", "--overwrite"])
        assert rows_read == []


def test_what_is_damaged_is_not_taken(inputs, left, rows_read):
    for path in (features_path(left), baseline_path(left)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    ok("precompute", *inputs, "--out", left.with_name("b.h5"))
    assert sum(rows_read) == len(DISTINCT)
    assert np.isfinite(values_of(left.with_name("b.h5"))).all()


def test_a_reading_that_was_cut_off_resumes_in_both_files(
    made, inputs, tmp_path, monkeypatch, rows_read
):
    read, seen = frozen_reading.embed_and_score, []

    def cut(*given, **how):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(given)
        return read(*given, **how)

    out = tmp_path / "b.h5"
    call = ("precompute", *inputs, "--out", out, "--shard-rows", 20)
    monkeypatch.setattr(frozen_reading, "embed_and_score", cut)
    assert twcli(*call).exit_code == 130
    assert not out.exists() and not features_path(out).exists()
    monkeypatch.setattr(frozen_reading, "embed_and_score", read)
    rows_read.clear()
    assert "resuming: 40 of 73 rows are done" in in_one_line(ok(*call))
    assert sum(rows_read) == 33  # 20 distinct ones, and copies whose first one was read before
    whole = made[0] / "names.jsonl"
    assert np.abs(values_of(out) - values_of(baseline_path(whole))).max() <= 1e-5
    with FeatureStore(features_path(out)) as one, FeatureStore(features_path(whole)) as other:
        assert one.fingerprint == other.fingerprint and one.rows == other.rows == 60
        expected = other.read(np.arange(60))
        for name, values in one.read(np.arange(60)).items():
            assert np.allclose(values, expected[name], atol=2e-3)
        assert expected["states"].std() > 0.01


def test_a_file_that_lacks_less_than_the_other_is_written_where_it_lacks(tmp_path):
    """What was stored before is not written again, whatever is read for the other file."""
    joined = frozen_reading._joined([range(5, 9), range(3), range(3, 4), range(8, 12)])
    assert joined == [range(4), range(5, 12)]
    assert frozen_reading._inside(joined, range(2, 7)) == [range(2, 4), range(5, 7)]
    assert frozen_reading._inside(joined, range(4, 5)) == []


def test_what_would_be_large_is_not_kept_unasked(inputs, tmp_path, monkeypatch, rows_read):
    monkeypatch.setattr("twcli.commands.precompute.FEATURE_BYTES", 1000)
    ok("precompute", *inputs, "--out", tmp_path / "b.h5")
    assert sum(rows_read) == len(DISTINCT)
    assert not features_path(tmp_path / "b.h5").exists()


def test_the_size_of_features_is_known_before_they_are_read(left):
    with FeatureStore(features_path(left)) as store:
        assert sum(store.widths.values()) == features.values_a_record(make_model())
