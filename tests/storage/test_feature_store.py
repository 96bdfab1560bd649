"""Features are kept as they were written, survive kills and full disks, and no file is believed
before it was checked.
"""

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.storage.test_cache import some_rows as b_t_of_some_rows
from twcli.errors import UserError, WorkFailed
from twcli.storage import durable, hdf5, shards
from twcli.storage.cache import Cache
from twcli.storage.feature_store import FeatureStore
from twcli.storage.feature_writer import FeatureWriter

ROOT = Path(__file__).parent.parent.parent
PRINT = {"weights": "aa", "template": {"tags": ["<x>"], "version": 1}, "features": 3}
MEND = "delete the file or give --overwrite"


class Truth:
    """Rows with random features and how to write them."""

    def __init__(self, rows=40, seed=0, shard_rows=7, widths=None):
        rng = np.random.default_rng(seed)
        self.widths = widths or {"mean": 5, "last": 3}
        self.row_hash = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
        self.values = {
            name: rng.normal(0, 30, (rows, width)).astype(np.float32)
            for name, width in self.widths.items()
        }
        self.shard_rows = shard_rows

    def writer(self, path, fingerprint=PRINT, **options):
        own = {"row_hash": self.row_hash, "widths": self.widths, "shard_rows": self.shard_rows}
        return FeatureWriter(path, **{"fingerprint": fingerprint, **own, **options})

    def part(self, rows):
        return {name: array[rows.start : rows.stop] for name, array in self.values.items()}

    def rounded(self, rows):
        return {
            name: array[rows].astype(np.float16).astype(np.float32)
            for name, array in self.values.items()
        }

    def write(self, path, shards=None, **options):
        """All of it, or only the first `shards` that are missing; returns how many were written."""
        with self.writer(path, **options) as writer:
            todo = writer.missing[:shards]
            for rows in todo:
                writer.write(rows, self.part(rows))
            if not writer.missing:
                writer.publish()
        return len(todo)

    def matches(self, path):
        with FeatureStore(path) as store:
            assert store.verify() == []
            rows = np.arange(store.rows)
            return same(store.read(rows), self.rounded(rows))


def same(found, wanted):
    return set(found) == set(wanted) and all(
        found[name].dtype == np.float32 and np.array_equal(found[name], wanted[name])
        for name in wanted
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "F.h5"


def leftovers(path):
    return sorted(
        p.name for p in path.parent.iterdir() if p.name not in (path.name, f"{path.name}.lock")
    )


def refusal(action):
    """The message of the UserError, which must be one line."""
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read is what was written


@pytest.mark.slow
@pytest.mark.parametrize("widths", [{"a": 1}, {"b": 700, "a": 1}, {"a": 9000}, {"a": 300_000}])
@pytest.mark.parametrize("shard_rows", [1, 13, 1000])
def test_rows_come_back_in_any_order(path, widths, shard_rows):
    number = 6 if widths["a"] == 300_000 else 60
    truth = Truth(number, widths=widths, shard_rows=shard_rows)
    truth.write(path)
    assert truth.matches(path)
    assert leftovers(path) == []
    rng = np.random.default_rng(1)
    with FeatureStore(path) as store:
        assert (store.rows, store.fingerprint) == (number, PRINT)
        assert list(store.widths.items()) == sorted(widths.items())
        store.check(PRINT, truth.row_hash)
        for size in (0, 1, 2, 5):
            rows = rng.permutation(number)[:size]
            assert same(store.read(rows), truth.rounded(rows))
        rows = rng.integers(0, number, 100)
        assert same(store.read(rows), truth.rounded(rows))
        for outside in (number, -1):
            with pytest.raises(IndexError, match=rf"rows must lie in 0 to {number - 1}$"):
                store.read(np.array([outside]))


def test_blocks_come_back(path):
    truth = Truth(1000, shard_rows=300)
    truth.write(path)
    with FeatureStore(path) as store:
        blocks = list(store.blocks(384))
    assert [rows for rows, _ in blocks] == [range(384), range(384, 768), range(768, 1000)]
    for rows, values in blocks:
        assert same(values, truth.rounded(np.asarray(rows)))


def test_the_file_is_plain_hdf5_in_chunks_of_half_a_mebibyte(path):
    truth = Truth(300, widths={"a": 2000, "b": 47})
    truth.write(path)
    with h5py.File(path) as file:
        assert {
            name: (d.dtype.str, d.shape, d.chunks, d.fletcher32) for name, d in file.items()
        } == {
            "values": ("<f2", (300, 2047), (128, 2047), True),
            "row_hash": ("|u1", (300, 16), (4096, 16), True),
        }
        assert file.attrs["features_version"] == 1
        assert json.loads(file.attrs["fingerprint"]) == PRINT
        assert json.loads(file.attrs["widths"]) == {"a": 2000, "b": 47}
        assert np.array_equal(file["row_hash"][:], truth.row_hash)
        assert np.array_equal(file["values"][:, 2000:], truth.values["b"].astype("<f2"))


def test_a_long_fingerprint_and_many_features_fit(path):
    widths = {f"layer {i} of the feature extractor": 1 for i in range(770)}
    truth = Truth(3, widths=widths)
    fingerprint = {"weights": "x" * 31_000}
    truth.write(path, fingerprint=fingerprint)
    assert truth.matches(path)
    assert FeatureStore(path).fingerprint == fingerprint


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
def test_any_float_is_taken(path, dtype):
    truth = Truth()
    truth.values = {name: array.astype(dtype) for name, array in truth.values.items()}
    truth.write(path)
    assert truth.matches(path)


def test_a_closed_store_does_not_read_another_file(path):
    Truth().write(path)
    store = FeatureStore(path)
    store.close()
    store.close()
    for action in (
        lambda: store.read(np.array([0])),
        store.verify,
        lambda: store.check(PRINT, Truth().row_hash),
    ):
        with pytest.raises(ValueError, match="the store is closed"):
            action()


def test_handles_are_closed(path):
    Truth().write(path)
    before = len(os.listdir("/proc/self/fd"))
    with FeatureStore(path) as store:
        store.read(np.arange(3))
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before
    path.write_bytes(path.read_bytes()[:3000])
    refusal(lambda: FeatureStore(path))
    assert len(os.listdir("/proc/self/fd")) == before


# What is refused on writing


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "nan: the model is broken"),
        (-np.inf, "-inf: the model is broken"),
        (65520.0, r"6.552e\+04: beyond what float16 holds \(65504\)"),
    ],
)
def test_a_value_that_float16_does_not_hold_is_refused_with_its_row(path, value, said):
    truth = Truth()
    truth.values["mean"][9, 2] = value
    with truth.writer(path) as writer:
        writer.write(range(7), truth.part(range(7)))
        with pytest.raises(
            WorkFailed, match=rf"row 9 \(line 10 of the data\): value 2 of mean is {said}"
        ):
            writer.write(range(7, 14), truth.part(range(7, 14)))
        assert writer.missing[0] == range(7, 14)
        truth.values["mean"][9, 2] = 65504
        writer.write(range(7, 14), truth.part(range(7, 14)))
    assert truth.write(path) == 4
    assert truth.matches(path)


def test_wrong_rows_and_arrays_are_refused(path):
    truth = Truth(5, shard_rows=3)
    with truth.writer(path) as writer:
        assert writer.missing == [range(3), range(3, 5)]
        good = truth.part(range(3))
        for rows, values, said in (
            (range(0), truth.part(range(0)), "not a range"),
            (range(0, 3, 2), good, "not a range"),
            (range(4, 6), good, "not a range"),
            (range(2), good, r"rows 0 to 1: last must be floats of shape \(2, 3\)"),
            (range(3), {"mean": good["mean"]}, r"the features are \['last', 'mean'\]"),
            (range(3), good | {"max": good["mean"]}, "the features are"),
            (range(3), good | {"mean": good["mean"].astype(int)}, "must be floats"),
            (range(3), good | {"mean": good["mean"][:, 0]}, "must be floats of shape"),
        ):
            with pytest.raises(ValueError, match=said):
                writer.write(rows, values)
        writer.write(range(3), good)
        with pytest.raises(ValueError, match="not a range of missing rows"):
            writer.write(range(2, 5), truth.part(range(2, 5)))
        with pytest.raises(ValueError, match="rows 3 to 4 are missing"):
            writer.publish()


def test_wrong_arguments_are_refused(path):
    truth = Truth()
    assert "no rows" in refusal(lambda: truth.writer(path, row_hash=truth.row_hash[:0]))
    for wrong in (
        {"shard_rows": 0},
        {"row_hash": truth.row_hash[:, :8]},
        {"row_hash": truth.row_hash.astype(int)},
        {"fingerprint": {"a": "x" * 40_000}},
        {"fingerprint": {"a": float("nan")}},
        {"widths": {}},
        {"widths": {"a": 0}},
        {"widths": {"a": 2.5}},
        {"widths": {"a": "3"}},
        {"widths": {3: 3}},
        {"widths": {"a": 1 << 23, "b": (1 << 23) + 1}},
    ):
        with pytest.raises(ValueError, match=r"shard_rows|row_hash|fingerprint|JSON|width|feature"):
            truth.writer(path, **wrong)
    assert "name a file" in refusal(lambda: truth.writer(path.parent))
    assert "make it first" in refusal(lambda: truth.writer(path / "F.h5"))
    assert list(path.parent.iterdir()) == []


# Interruptions


@pytest.mark.parametrize("shards", [0, 1, 3, 5])
def test_after_an_exception_between_shards_it_resumes(path, shards):
    truth = Truth()
    with pytest.raises(KeyboardInterrupt), truth.writer(path) as writer:
        for number, rows in enumerate(writer.missing):
            if number == shards:
                raise KeyboardInterrupt
            writer.write(rows, truth.part(rows))
    assert not path.exists()
    with truth.writer(path) as writer:
        assert writer.notes == []
        assert len(writer.missing) == 6 - shards
    assert truth.write(path, shard_rows=20) < 6
    assert truth.matches(path)
    assert leftovers(path) == []


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen", "empty", "gone"])
def test_a_damaged_shard_is_made_again_and_reported(path, damage):
    truth = Truth()
    truth.write(path, 3)
    shard = path.parent / "F.h5.parts" / "7-14.f16"
    data = shard.read_bytes()
    flipped = data[:40] + bytes([data[40] ^ 4]) + data[41:]
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(
            {"flip": flipped, "shorten": data[:-4], "lengthen": data * 2, "empty": b""}[damage]
        )
    with truth.writer(path) as writer:
        assert len(writer.notes) == (damage != "gone")
        assert all("rows 7 to 13 is damaged" in note for note in writer.notes)
        assert writer.missing == [range(7, 14), range(21, 28), range(28, 35), range(35, 40)]
    assert truth.write(path) == 4
    assert truth.matches(path)


def test_a_shard_damaged_before_publishing_is_not_published(path):
    truth = Truth()
    with truth.writer(path) as writer:
        for rows in writer.missing:
            writer.write(rows, truth.part(rows))
        (path.parent / "F.h5.parts" / "7-14.f16").write_bytes(b"x")
        with pytest.raises(WorkFailed, match="rows 7 to 13 was damaged meanwhile"):
            writer.publish()
    assert not path.exists()
    assert truth.write(path) == 1
    assert truth.matches(path)


def test_a_shard_of_other_features_is_not_published_though_its_checksum_is_right(path):
    truth = Truth()
    truth.write(path, 2)
    data = b'{"last": 4, "mean": 4}\n' + bytes(7 * 16)
    (path.parent / "F.h5.parts" / "7-14.f16").write_bytes(data)
    with open(path.parent / "F.h5.parts" / "manifest.jsonl", "a") as file:
        file.write(json.dumps({"rows": [7, 14], "sha256": hashlib.sha256(data).hexdigest()}))
    with pytest.raises(WorkFailed, match="rows 7 to 13 holds other features; delete the folder"):
        truth.write(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"fingerprint": PRINT | {"features": 4}}, "features differs"),
        (
            {"fingerprint": PRINT | {"template": {"tags": [], "version": 1}}},
            "template.tags differs",
        ),
        ({"row_hash": np.ones((40, 16), np.uint8)}, "the rows differ"),
        ({"widths": {"mean": 3, "last": 5}}, "its features have other names or widths"),
        ({"widths": {"mean": 8}}, "its features have other names or widths"),
    ],
)
def test_shards_of_something_else_are_discarded_and_reported(path, change, why):
    Truth().write(path, 3)
    other = Truth(widths=change.get("widths"))
    with other.writer(path, **change) as writer:
        assert writer.notes == [f"{path}.parts: an unfinished feature file was discarded: {why}"]
        assert len(writer.missing) == 6
        assert "is writing it" in refusal(other.writer(path, **change).__enter__)
    assert leftovers(path) == []
    assert other.write(path, **change) == 6
    assert other.matches(path)


def test_widths_are_those_of_the_first_rows_and_of_the_shards_after_a_kill(path):
    truth = Truth()
    with truth.writer(path, widths=None) as writer:
        assert writer.widths is None
        with pytest.raises(ValueError, match="at least one value"):
            writer.write(range(7), {})
        assert writer.widths is None
        writer.write(range(7), truth.part(range(7)))
        assert writer.widths == truth.widths
        with pytest.raises(ValueError, match="mean must be floats of shape"):
            writer.write(range(7, 14), truth.part(range(7, 14)) | {"mean": np.zeros((7, 6))})
    with truth.writer(path, widths=None) as writer:
        assert writer.widths == truth.widths and writer.notes == []
        assert list(writer.widths) == ["last", "mean"]
        with pytest.raises(ValueError, match="mean must be floats of shape"):
            writer.write(range(7, 14), truth.part(range(7, 14)) | {"mean": np.zeros((7, 6))})
    assert truth.write(path, 2) == 2  # given or not, they are the same
    assert truth.write(path, widths=None) == 3
    assert truth.matches(path)


def test_all_shards_are_there_and_only_publishing_is_left(path):
    truth = Truth()
    with truth.writer(path, widths=None) as writer:
        for rows in writer.missing:
            writer.write(rows, truth.part(rows))
    assert truth.write(path, widths=None) == 0
    assert truth.matches(path)


@pytest.mark.parametrize(
    "line", [b"", b"\xff\n", b"[1]\n", b'{"a": 0}\n', b'{"a":8}\n', b"[" * 40_000, b'{"a": 8}']
)
def test_shards_without_widths_are_begun_again(path, line):
    truth = Truth()
    truth.write(path, 1)
    data = line + bytes(7 * 16)
    (path.parent / "F.h5.parts" / "0-7.f16").write_bytes(data)
    with open(path.parent / "F.h5.parts" / "manifest.jsonl", "a") as file:
        file.write(json.dumps({"rows": [0, 7], "sha256": hashlib.sha256(data).hexdigest()}))
    with truth.writer(path, widths=None) as writer:
        assert "was discarded: its features have other names" in writer.notes[0]
        assert len(writer.missing) == 6
    assert truth.write(path) == 6
    assert truth.matches(path)


WRITE_SLOWLY = """
    import time
    from tests.storage.test_feature_store import Truth
    truth = Truth(400, shard_rows=20)
    with truth.writer({path!r}, widths=None) as writer:
        print("holding", flush=True)
        for rows in writer.missing:
            writer.write(rows, truth.part(rows))
            print(rows.start, flush=True)
        print("publishing", flush=True)
        writer.publish()
    print("published", flush=True)
"""


def start(code, **values):
    code = textwrap.dedent(code).format(**values)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"},
    )


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_bits(path):
    rng = random.Random(5)
    truth = Truth(400, shard_rows=20)
    finished = []
    for moment in ("shard", "shard", "publishing", "publishing"):
        process = start(WRITE_SLOWLY, path=str(path))
        if moment == "shard":
            lines = [process.stdout.readline() for _ in range(rng.randint(1, 6))]
        else:
            lines = list(iter(process.stdout.readline, "publishing\n"))
        time.sleep(rng.uniform(0, 0.004))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        finished.append(len(lines) - 1)
        if path.exists():  # the kill came after the last step: begin the last phase again
            assert truth.matches(path)
            path.unlink()
    assert sum(finished[:3]) <= 20  # none of the finished shards was made again
    truth.write(path)
    truth.write(path.with_name("undisturbed.h5"))
    assert truth.matches(path)
    assert path.read_bytes() == path.with_name("undisturbed.h5").read_bytes()


# A full disk


FULL_DISK = """
    import resource
    from tests.storage.test_feature_store import Truth
    from twcli.errors import WorkFailed
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        print(Truth(100, shard_rows=10, widths={{"a": 9000}}).write({path!r}))
    except WorkFailed as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "doing", "left"),
    [
        (100_000, "store rows 0 to 9", 10),
        (200_000, "write the features", 0),
        (1_200_000, "write the features", 0),
    ],
)
def test_a_file_that_cannot_grow_is_one_line_and_can_be_resumed(path, limit, doing, left):
    out, err = (process := start(FULL_DISK, limit=limit, path=str(path))).communicate()
    assert out == (
        f"{path}: cannot {doing}: file too large; finished shards are kept; run the same "
        "command again to resume\n"
    )
    assert (err, process.returncode) == ("", 0)
    assert not path.exists()
    assert not list(path.parent.rglob("*.tmp"))
    truth = Truth(100, shard_rows=10, widths={"a": 9000})
    assert truth.write(path) == left
    assert truth.matches(path)


@pytest.mark.parametrize("for_good", [True, False])
def test_any_single_write_may_fail(path, monkeypatch, for_good):
    """Every write, one after the other, is the first that finds the disk full, or the only one
    because somebody made room; the next try succeeds.
    """
    truth = Truth(70, shard_rows=30, widths={"a": 9000, "b": 50})
    real, failures = durable.write_all, 0
    for number in range(1000):
        calls = count()

        def full(handle, data, position=None, number=number, calls=calls):
            call = next(calls)
            if call == number or (for_good and call > number):
                real(handle, memoryview(data).cast("B")[: len(data) // 2], position)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle, data, position)

        with monkeypatch.context() as patch:
            for module in (durable, shards, hdf5):
                patch.setattr(module, "write_all", full)
            try:
                truth.write(path)
                break
            except WorkFailed as error:
                assert "no space left on device" in str(error)
                assert not list(path.parent.rglob("*.tmp"))
                failures += 1
        assert not path.exists()
    assert failures > 15
    assert truth.matches(path)
    assert leftovers(path) == []


# One writer, and what is there already


def test_a_second_writer_is_refused_while_the_first_holds_the_lock(path):
    truth = Truth()
    with truth.writer(path) as writer:
        writer.write(range(7), truth.part(range(7)))
        assert f"process {os.getpid()} on" in refusal(truth.writer(path).__enter__)
        other = {"fingerprint": PRINT | {"features": 4}}
        assert "is writing it" in refusal(truth.writer(path, **other).__enter__)
    assert truth.write(path) == 5
    assert truth.matches(path)


def test_who_loses_the_lock_while_discarding_shards_leaves_those_of_the_winner(path, monkeypatch):
    truth, other = Truth(), Truth(widths={"max": 2})
    truth.write(path, 3)
    mine, theirs = other.writer(path), truth.writer(path)
    real = shards.Shards.close

    def close_and_lose(self):
        real(self)
        with monkeypatch.context() as patch:
            patch.setattr(shards.Shards, "close", real)
            theirs.__enter__()
            theirs.write(range(7), truth.part(range(7)))

    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "close", close_and_lose)
        assert "is writing it" in refusal(mine.__enter__)
    theirs.__exit__()
    assert truth.write(path) == 5
    assert truth.matches(path)


@pytest.mark.slow
def test_a_complete_file_is_recognised_and_never_begun_again_unasked(path):
    truth = Truth()
    assert FeatureWriter.already_complete(path, PRINT, truth.row_hash) is False
    truth.write(path, 3)
    assert FeatureWriter.already_complete(path, PRINT, truth.row_hash) is False
    truth.write(path)
    assert FeatureWriter.already_complete(str(path), PRINT, truth.row_hash)
    assert not FeatureWriter.already_complete(path, PRINT | {"weights": "b"}, truth.row_hash)
    assert not FeatureWriter.already_complete(path, PRINT, truth.row_hash[:-1])
    assert not FeatureWriter.already_complete(path, PRINT, truth.row_hash ^ 1)
    assert f"already complete; {MEND}" in refusal(lambda: truth.writer(path))
    flip(path, path.stat().st_size // 2)
    assert not FeatureWriter.already_complete(path, PRINT, truth.row_hash)
    message = refusal(lambda: truth.writer(path))
    assert "the checksum of the whole file does not match" in message and MEND in message
    truth.write(path, overwrite=True)
    assert truth.matches(path)


def test_shards_left_beside_a_complete_file_are_removed(path):
    truth = Truth()
    truth.write(path)
    published = path.read_bytes()
    path.unlink()
    truth.write(path, 3)
    path.write_bytes(published)  # as a kill between publishing and tidying up leaves it
    assert FeatureWriter.already_complete(path, PRINT, truth.row_hash)
    assert leftovers(path) == []


def test_another_file_is_replaced_only_on_demand_and_only_when_complete(path):
    old, new = Truth(seed=1), Truth(seed=2)
    old.write(path)
    other = PRINT | {"template": {"tags": ["<x>"], "version": 2}}
    message = refusal(lambda: new.writer(path, other))
    assert "another template.version: the file has 1, this call has 2" in message
    assert message.endswith(MEND)
    assert new.write(path, 2, fingerprint=other, overwrite=True) == 2
    assert old.matches(path)
    assert new.write(path, fingerprint=other, overwrite=True) == 4
    assert new.matches(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(lambda: new.writer(path)).count("--overwrite") == 1
    new.write(path, overwrite=True)
    assert new.matches(path)
    path.write_bytes(b"")
    new.write(path, overwrite=True)
    assert new.matches(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_feature_file_is_never_replaced(path, overwrite):
    path.write_text('{"x": "mine", "y": "too"}\n')
    said = f"{path}: is not a feature file; name another one"
    assert refusal(lambda: Truth().writer(path, overwrite=overwrite)) == said
    assert path.read_text() == '{"x": "mine", "y": "too"}\n'
    path.unlink()
    baseline = b_t_of_some_rows()
    baseline.write(path)
    assert refusal(lambda: Truth().writer(path, overwrite=overwrite)) == said
    assert baseline.matches(path)


def test_check_names_the_field_the_line_and_the_counts(path):
    truth = Truth(6000, shard_rows=999)
    truth.write(path)
    with FeatureStore(path) as store:
        # as JSON knows it
        store.check(PRINT | {"template": {"version": 1, "tags": ("<x>",)}}, truth.row_hash)
        other = truth.row_hash.copy()
        other[[4999, 5500], 15] ^= 1
        for fingerprint, rows, said in (
            (PRINT | {"weights": "b"}, truth.row_hash, 'another weights: the file has "aa", this'),
            (PRINT | {"weights": "b"}, other, "is line 5000 of the data"),
            ({"weights": "aa"}, truth.row_hash, "another template: the file has {"),
            (PRINT | {"x": 1}, truth.row_hash, "another x: the file has nothing, this call has 1"),
            (PRINT, other, "made from other data; the first row that differs is line 5000 of"),
            (PRINT, truth.row_hash[:-1], "made from 6000 rows, the data have 5999"),
        ):
            message = refusal(lambda f=fingerprint, r=rows: store.check(f, r))
            assert said in message and message.endswith(MEND) and str(path) in message


# Memory


def peak(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(path):
    truth = Truth(4000, widths={"a": 1500, "b": 500}, shard_rows=100)
    stored, block = 4000 * 2000 * 2, 100 * 2000 * 2
    with truth.writer(path) as writer:

        def write():
            for rows in writer.missing:
                writer.write(rows, truth.part(rows))

        assert peak(write) < 10 * block < stored / 3
        assert peak(writer.publish) < 5e6 < stored / 3

    def run():
        with FeatureStore(path) as store:
            for _ in store.blocks(100):
                pass

    # float16, float32, the block before, and the chunk that is being summed
    assert peak(run) < 7 * block + 2e6 < stored / 3
    with FeatureStore(path) as store:
        assert peak(lambda: store.read(np.arange(0, 4000, 400))) < 2e6
        assert peak(store.verify) < 4e6


# Damage


def flip(path, place, bit=0):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def notices(path):
    try:
        with FeatureStore(path) as store:
            return bool(store.verify())
    except UserError as error:
        assert "\n" not in str(error)
        return True


def test_every_flipped_bit_is_found(path):
    Truth(300, widths={"a": 900}).write(path)
    outside = np.ones(path.stat().st_size, bool)  # HDF5's own structures and the gaps between
    with h5py.File(path) as file:
        for dataset in file.values():
            for number in range(dataset.id.get_num_chunks()):
                chunk = dataset.id.get_chunk_info(number)
                outside[chunk.byte_offset : chunk.byte_offset + chunk.size] = False
    rng = np.random.default_rng(3)
    places = np.flatnonzero(outside)
    assert not notices(path)
    for place in [*rng.integers(0, len(outside), 30), *rng.choice(places, 60), len(outside) - 1]:
        bit = int(rng.integers(0, 8))
        flip(path, place, bit)
        assert notices(path), f"bit {bit} of byte {place}"
        flip(path, place, bit)
    assert not notices(path)


def test_a_damaged_row_is_not_read(path):
    truth = Truth(100, widths={"a": 9000})  # 29 rows a chunk
    truth.write(path)
    with h5py.File(path) as file:
        chunk = file["values"].id.get_chunk_info(2)
    flip(path, chunk.byte_offset + 5000, 7)
    with FeatureStore(path) as store:
        rows = np.r_[99:86:-1, 0:58]  # all but those of the chunk: nothing else is read
        assert same(store.read(rows), truth.rounded(rows))
        said = "/values is damaged in entries 58 to 86 (checksum)"
        assert refusal(lambda: store.read(np.array([3, 70]))) == f"{path}: {said}; {MEND}"
        assert store.verify()[1:] == [said]


def test_a_row_hash_that_is_damaged_is_not_compared(path):
    truth = Truth()
    truth.write(path)
    with h5py.File(path) as file:
        chunk = file["row_hash"].id.get_chunk_info(0)
    flip(path, chunk.byte_offset + 5)
    with FeatureStore(path) as store:
        assert "/row_hash is damaged" in refusal(lambda: store.check(PRINT, truth.row_hash))


def test_twenty_damaged_places_are_listed_and_the_rest_counted(path):
    Truth(25, widths={"a": 200_000}, shard_rows=25).write(path)  # a row a chunk
    with h5py.File(path) as file:
        places = [file["values"].id.get_chunk_info(i).byte_offset for i in range(25)]
    for place in places:
        flip(path, place + 100)
    with FeatureStore(path) as store:
        _, *problems = store.verify()
    assert all("is damaged in entries" in line for line in problems[:20])
    assert problems[20:] == ["and 5 more damaged places"]


def test_a_truncated_or_lengthened_file_is_found(path):
    Truth().write(path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, 1000, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert notices(path), size
    path.write_bytes(whole + b"\n")
    assert notices(path)


def test_a_file_cut_short_while_in_use_is_an_error_and_no_crash(path):
    truth = Truth(100, widths={"a": 9000})
    truth.write(path)
    with FeatureStore(path) as store:
        store.read(np.arange(100))
        os.truncate(path, 10_000)
        assert "cut short while in use" in refusal(lambda: store.read(np.arange(100)))


# Files that are made to harm


def forge(path, change=lambda file: None, **attributes):
    """A file of two rows made by h5py, then changed; without change it can be read."""
    with h5py.File(path, "w") as file:
        replaced("row_hash", **ROW_HASH)(file)
        replaced("values", **VALUES)(file)
        file["row_hash"][:], file["values"][:] = 0, 1
        good = {
            "features_version": 1,
            "fingerprint": np.bytes_(b"{}"),
            "widths": np.bytes_(b'{"a": 700, "b": 300}'),
        }
        for name, value in (good | attributes).items():
            if value is not None:
                file.attrs[name] = value
        change(file)


ROW_HASH = {
    "shape": (2, 16),
    "dtype": "u1",
    "maxshape": (None, 16),
    "chunks": (4096, 16),
    "fletcher32": True,
}
VALUES = {
    "shape": (2, 1000),
    "dtype": "<f2",
    "maxshape": (None, 1000),
    "chunks": (262, 1000),
    "fletcher32": True,
}


def replaced(name, **settings):
    def change(file):
        if name in file:
            del file[name]
        file.create_dataset(name, **settings)

    return change


def values(**settings):
    return replaced("values", **(VALUES | settings))


def virtual(file):
    layout = h5py.VirtualLayout((2, 1000), "<f2")
    layout[:] = h5py.VirtualSource("secret.h5", "values", (2, 1000))
    del file["values"]
    file.create_virtual_dataset("values", layout)


def linked(link):
    def change(file):
        del file["values"]
        file["values"] = link

    return change


NOT_PLAIN = "/values is not stored in plain chunks"
HOSTILE = {
    "external link": (
        linked(h5py.ExternalLink("secret.h5", "/values")),
        "/values is a link to somewhere else",
    ),
    "soft link": (linked(h5py.SoftLink("/row_hash")), "/values is a link to somewhere else"),
    "external storage": (
        replaced("values", shape=(2, 1000), dtype="<f2", external=[("secret.bin", 0, 4000)]),
        NOT_PLAIN,
    ),
    "virtual dataset": (virtual, NOT_PLAIN),
    "2 PB": (
        lambda file: (file["values"].resize(10**12, 0), file["row_hash"].resize(10**12, 0)),
        "declares more data than the file has bytes",
    ),
    "2 PB of values": (values(shape=(10**12, 1000)), "its shapes do not fit together"),
    "rows of 2 TB": (
        values(shape=(2, 10**12), maxshape=(None, 10**12)),
        "/values has the wrong type or shape",
    ),
    "nothing stored": (values(), "/values is not completely there"),
    "contiguous": (replaced("values", data=np.ones((2, 1000), "<f2")), NOT_PLAIN),
    "no checksum": (values(fletcher32=False), NOT_PLAIN),
    "a bomb": (values(compression="gzip"), NOT_PLAIN),
    "other chunks": (values(chunks=(1, 1000)), "/values has the wrong type or shape"),
    "float32": (values(dtype="<f4"), "/values has the wrong type or shape"),
    "big-endian": (values(dtype=">f2"), "/values has the wrong type or shape"),
    "three axes": (
        values(shape=(2, 1000, 1), maxshape=(None, 1000, 1), chunks=(262, 1000, 1)),
        "/values has the wrong type or shape",
    ),
    "a group": (
        lambda file: (file.pop("values"), file.create_group("values")),
        "/values is not a dataset",
    ),
    "missing": (lambda file: file.pop("row_hash"), "it has no /row_hash"),
    "extra": (lambda file: file.create_group("zzz"), "it holds /zzz"),
    "one row more": (lambda file: file["values"].resize(3, 0), "its shapes do not fit together"),
    "no rows": (
        lambda file: (file["values"].resize(0, 0), file["row_hash"].resize(0, 0)),
        "its shapes do not fit together",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_structure_is_refused(path, name):
    with h5py.File(path.parent / "secret.h5", "w") as file:
        file["values"] = np.ones((2, 1000), "<f2")
    (path.parent / "secret.bin").write_bytes(bytes(4000))
    change, said = HOSTILE[name]
    forge(path)
    # so it is the change that is refused
    with FeatureStore(path) as store:
        assert {name: array.sum() for name, array in store.read(np.array([1])).items()} == {
            "a": 700,
            "b": 300,
        }
    forge(path, change)
    message = refusal(lambda: FeatureStore(path))
    assert said in message and message.endswith(MEND)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"features_version": 2}, "it has features version 2, this twcli reads 1"),
        ({"features_version": None}, "it has no attribute features_version"),
        ({"features_version": [1, 1]}, "features_version has the wrong type"),
        ({"fingerprint": None}, "it has no attribute fingerprint"),
        ({"fingerprint": "{}"}, "fingerprint has the wrong type"),
        ({"fingerprint": np.bytes_(b'{"a": ')}, "attribute fingerprint is not a JSON object"),
        ({"fingerprint": np.bytes_(b"\xff\xfe")}, "attribute fingerprint is not a JSON object"),
        ({"fingerprint": np.bytes_(b"[" * 30_000)}, "attribute fingerprint is not a JSON object"),
        ({"fingerprint": np.bytes_(b'{"a": NaN}')}, "JSON"),
        ({"widths": None}, "it has no attribute widths"),
        ({"widths": np.bytes_(b"[1000]")}, "attribute widths is not a JSON object"),
        ({"widths": np.bytes_(b'{"a": 999}')}, "/values has the wrong type or shape"),
        ({"widths": np.bytes_(b'{"a": 1000, "b": 0}')}, "at least one value"),
        ({"widths": np.bytes_(b'{"a": 1001, "b": -1}')}, "at least one value"),
        ({"widths": np.bytes_(b'{"a": 1000.0}')}, "whole numbers"),
        ({"widths": np.bytes_(b'{"a": 1e999}')}, "whole numbers"),
        ({"widths": np.bytes_(b'{"b": 300, "a": 700}')}, "not in the order of their names"),
        ({"widths": np.bytes_(b'{"a": 1' + b"0" * 3000 + b"}")}, "at most 16777216"),
        ({"widths": np.bytes_(b'{"a": "' + b"x" * 32_000 + b'"}')}, "wrong type or size"),
    ],
)
def test_hostile_attributes_are_refused(path, attributes, said):
    forge(path, **attributes)
    assert said in refusal(lambda: FeatureStore(path))


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "pipe", "b_t"])
def test_what_is_no_feature_file_is_refused(path, kind):
    make = {
        "folder": path.mkdir,
        "text": lambda: path.write_text("x" * 1000),
        "empty": path.touch,
        "pipe": lambda: os.mkfifo(path),
        "b_t": lambda: b_t_of_some_rows().write(path),
    }
    make.get(kind, list)()
    said = {"missing": "no such file", "b_t": "has no attribute features_version"}.get(
        kind, "is not an HDF5 file"
    )
    assert said in refusal(lambda: FeatureStore(path))


def test_a_feature_file_is_no_cache_of_b_t(path):
    Truth().write(path)
    assert re.search("is not an intact cache", refusal(lambda: Cache(path)))
