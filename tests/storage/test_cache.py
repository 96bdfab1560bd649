"""The cache keeps every bit, resumes after anything, and believes no
file that it has not checked.
"""

import errno
import hashlib
import json
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from twcli.errors import UserError, WorkFailed, first_difference
from twcli.storage import hdf5, shards
from twcli.storage.cache import Cache, CacheWriter

ROOT = Path(__file__).parent.parent.parent
PRINT = {"weights": "aa", "template": {"tags": ["<x>"], "version": 1}, "max_length": 128}


class Truth:
    """Rows with random b_t and how to write them."""

    def __init__(self, lengths, seed=0, shard_rows=7):
        rng = np.random.default_rng(seed)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.row_hash = rng.integers(0, 256, (len(lengths), 16), dtype=np.uint8)
        self.nll = rng.exponential(1.0, self.offsets[-1]).astype(np.float32)
        self.shard_rows = shard_rows

    def writer(self, path, fingerprint=PRINT, **options):
        own = {"offsets": self.offsets, "row_hash": self.row_hash, "shard_rows": self.shard_rows}
        return CacheWriter(path, **{"fingerprint": fingerprint, **own, **options})

    def part(self, rows):
        return self.nll[self.offsets[rows.start] : self.offsets[rows.stop]]

    def rows_of(self, rows):
        return np.concatenate(
            [np.empty(0, np.float32), *(self.part(range(r, r + 1)) for r in rows)]
        )

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
        with Cache(path) as cache:
            flat, lengths = cache.read(np.arange(cache.rows))
            assert cache.verify() == []
            return np.array_equal(flat, self.nll) and np.array_equal(
                np.cumsum(lengths), self.offsets[1:]
            )


def some_rows(count=40, seed=0, **options):
    return Truth(np.random.default_rng(seed).integers(0, 9, count), seed, **options)


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
@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [0],
        [0, 0, 3],
        [16384],
        [16385, 0, 1],
        [16383, 1, 16384, 5],
        [50000, 2, 40000],
        [3] * 9000,
    ],
)
def test_rows_come_back_in_any_order(path, lengths):
    truth = Truth(lengths, shard_rows=1000)
    truth.write(path)
    assert truth.matches(path)
    assert leftovers(path) == []
    rng = np.random.default_rng(1)
    with Cache(path) as cache:
        assert (cache.rows, cache.tokens, cache.fingerprint) == (len(lengths), sum(lengths), PRINT)
        for size in (0, 1, 2, 5, 300):
            rows = rng.integers(0, len(lengths), size)
            flat, counts = cache.read(rows)
            assert (flat.dtype, counts.dtype) == (np.float32, np.int64)
            assert np.array_equal(flat, truth.rows_of(rows))
            assert np.array_equal(counts, np.diff(truth.offsets)[rows])


def test_blocks_and_hashes_come_back(path):
    truth = some_rows(5000, shard_rows=999)
    truth.write(path)
    with Cache(path) as cache:
        blocks = list(cache.stream(640))
        cache.check(PRINT, truth.row_hash)
        other = truth.row_hash.copy()
        other[4095, 3] ^= 1
        with pytest.raises(UserError, match="4096"):
            cache.check(PRINT, other)
        for outside in (5000, -1):
            with pytest.raises(IndexError, match=r"rows must lie in 0 to 4999$"):
                cache.read(np.array([outside]))
    assert [rows.stop for rows, _, _ in blocks] == [640, 1280, 1920, 2560, 3200, 3840, 4480, 5000]
    assert np.array_equal(np.concatenate([flat for _, flat, _ in blocks]), truth.nll)
    assert np.array_equal(
        np.concatenate([lengths for _, _, lengths in blocks]), np.diff(truth.offsets)
    )


def test_others_may_read_the_file_as_far_as_the_umask_lets_them(path):
    before = os.umask(0)
    try:
        some_rows().write(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666


def test_the_file_is_plain_hdf5(path):
    truth = some_rows()
    truth.write(path)
    with h5py.File(path) as file:
        assert {
            name: (d.dtype.str, d.shape, d.chunks, d.fletcher32) for name, d in file.items()
        } == {
            "nll": ("<f4", truth.nll.shape, (16384,), True),
            "offsets": ("<i8", (41,), (4096,), True),
            "row_hash": ("|u1", (40, 16), (4096, 16), True),
        }
        assert np.array_equal(file["nll"][:], truth.nll)
        assert file.attrs["format_version"] == 1
        assert json.loads(file.attrs["fingerprint"]) == PRINT
        assert re.fullmatch(rb"[0-9a-f]{64}", file.attrs["content_sha256"])


# What is refused on writing


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (-1.1e-4, r"-0\.00011"), (-3.0, "-3")],
)
def test_a_value_that_is_no_nll_is_refused_with_its_row(path, value, said):
    truth = Truth([2, 0, 3, 4])
    truth.nll[3] = value  # the second token of row 2
    with truth.writer(path) as writer:
        with pytest.raises(
            WorkFailed, match=rf"row 2 \(line 3 of the data\): .* token 1 of y is {said};"
        ):
            writer.write(range(4), truth.nll)
        assert writer.missing == [range(4)]


def test_rounding_below_zero_becomes_zero(path):
    truth = Truth([3])
    truth.nll[:] = [-9e-5, -0.0, 1.0]
    truth.write(path)
    flat, _ = Cache(path).read(np.array([0]))
    assert flat.tolist() == [0, 0, 1]
    assert not np.signbit(flat).any()


def test_wrong_lengths_and_rows_are_refused(path):
    truth = Truth([2, 3, 4], shard_rows=2)
    with truth.writer(path) as writer:
        assert writer.missing == [range(2), range(2, 3)]
        for rows, nll in (
            (range(2), truth.nll[:4]),
            (range(4), truth.nll),
            (range(0), truth.nll[:0]),
            (range(0, 2, 2), truth.nll[:2]),
            (range(1), truth.nll[:2].reshape(1, 2)),
        ):
            with pytest.raises(ValueError, match=r"rows \d+ to|not a range"):
                writer.write(rows, nll)
        writer.write(range(2), truth.nll[:5])
        with pytest.raises(ValueError, match=r"have 4 tokens, but the NLL has shape \(3,\)"):
            writer.write(range(2, 3), truth.nll[6:])
        with pytest.raises(ValueError, match="not a range of missing rows"):
            writer.write(range(1, 3), truth.nll[2:])
        with pytest.raises(ValueError, match="rows 2 to 2 are missing"):
            writer.publish()


def test_wrong_arguments_are_refused(path):
    truth = Truth([2, 3])
    assert "no rows" in refusal(
        lambda: truth.writer(path, offsets=np.zeros(1), row_hash=truth.row_hash[:0])
    )
    for wrong in (
        {"offsets": [0, 5]},
        {"offsets": [1, 2, 5]},
        {"offsets": [0, 5, 2]},
        {"shard_rows": 0},
        {"row_hash": truth.row_hash[:, :8]},
        {"row_hash": truth.row_hash.astype(int)},
        {"fingerprint": {"a": "x" * 40_000}},
        {"fingerprint": {"a": float("nan")}},
    ):
        with pytest.raises(ValueError, match=r"offsets|shard_rows|row_hash|fingerprint|JSON"):
            truth.writer(path, **wrong)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "fix"),
    [
        ("/proc/F.h5", "cannot write there"),
        ("missing/F.h5", "make it first"),
        ("file/F.h5", "make it first"),
        ("folder", "name a file"),
        ("x" * 300, "cannot write there: file name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, place, fix):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    message = refusal(lambda: some_rows().writer(tmp_path / place))
    assert str(place) in message and fix in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(path):
    path.parent.chmod(0o500)
    assert "permission denied" in refusal(lambda: some_rows().writer(path))


# Interruptions


@pytest.mark.parametrize("shards", [0, 1, 3, 5])
def test_an_abandoned_writer_is_resumed(path, shards):
    truth = some_rows()
    assert truth.write(path, shards) == shards
    assert not path.exists()
    assert truth.write(path) == 6 - shards
    assert truth.matches(path)
    assert leftovers(path) == []


def test_another_shard_size_resumes_too(path):
    truth = some_rows()
    with truth.writer(path) as writer:
        writer.write(range(10, 13), truth.part(range(10, 13)))
        writer.write(range(3, 5), truth.part(range(3, 5)))
    with truth.writer(path, shard_rows=20) as writer:
        assert writer.missing == [range(3), range(5, 10), range(13, 33), range(33, 40)]
    truth.write(path, shard_rows=20)
    assert truth.matches(path)


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen", "empty"])
def test_a_damaged_shard_is_made_again_and_reported(path, damage):
    truth = some_rows()
    truth.write(path, 3)
    shard = path.parent / "F.h5.parts" / "7-14.f32"
    data = shard.read_bytes()
    flipped = data[:11] + bytes([data[11] ^ 4]) + data[12:]
    shard.write_bytes(
        {"flip": flipped, "shorten": data[:-4], "lengthen": data * 2, "empty": b""}[damage]
    )
    with truth.writer(path) as writer:
        assert [
            re.search("rows 7 to 13 is damaged", note) is not None for note in writer.notes
        ] == [True]
        assert writer.missing == [range(7, 14), range(21, 28), range(28, 35), range(35, 40)]
    truth.write(path)
    assert truth.matches(path)


def test_a_shard_damaged_before_publishing_is_not_published(path):
    truth = some_rows()
    with truth.writer(path) as writer:
        for rows in writer.missing:
            writer.write(rows, truth.part(rows))
        (path.parent / "F.h5.parts" / "7-14.f32").write_bytes(b"x")
        with pytest.raises(WorkFailed, match="rows 7 to 13 was damaged meanwhile"):
            writer.publish()
    assert not path.exists()
    assert truth.write(path) == 1
    assert truth.matches(path)


def test_torn_files_are_swept_up(path):
    truth = some_rows()
    truth.write(path, 2)
    shards = path.parent / "F.h5.parts"
    (shards / "14-21.f32.tmp").write_bytes(b"torn")
    (shards / "publish.tmp").write_bytes(b"torn")
    (shards / "21-28.f32").write_bytes(b"was never listed")
    with open(shards / "manifest.jsonl", "ab") as file:
        file.write(
            b'\n{"rows": [14, 21], "sha256": "00"}\n\n{"rows": [7, 30]}\n[]\n{"rows": [28, 3'
        )
    with truth.writer(path) as writer:
        assert writer.notes == []
        assert writer.missing[0] == range(14, 21)
        assert {p.name for p in shards.iterdir()} == {
            "0-7.f32",
            "7-14.f32",
            "manifest.jsonl",
            "owner.json",
        }
    assert truth.write(path) == 4
    assert truth.matches(path)


def test_a_shard_that_overlaps_another_is_dropped(path):
    truth = some_rows()
    truth.write(path, 2)
    shards = path.parent / "F.h5.parts"
    data = truth.part(range(3, 14)).tobytes()
    (shards / "3-14.f32").write_bytes(data)
    with open(shards / "manifest.jsonl", "a") as file:
        file.write(json.dumps({"rows": [3, 14], "sha256": hashlib.sha256(data).hexdigest()}))
    assert truth.write(path) == 4
    assert truth.matches(path)


def test_a_shard_of_another_size_is_made_again_though_its_checksum_is_right(path):
    truth = some_rows()
    truth.write(path, 2)
    shards = path.parent / "F.h5.parts"
    data = truth.part(range(7, 14)).tobytes()[:-4]
    (shards / "7-14.f32").write_bytes(data)
    with open(shards / "manifest.jsonl", "a") as file:
        file.write(json.dumps({"rows": [7, 14], "sha256": hashlib.sha256(data).hexdigest()}))
    with truth.writer(path) as writer:
        assert writer.missing[0] == range(7, 14) and "rows 7 to 13 is damaged" in writer.notes[0]
    assert truth.write(path) == 5
    assert truth.matches(path)


@pytest.mark.parametrize("first_line", ["[]", "{}", '{"fingerprint": 3}', "\0\0\0", ""])
def test_a_nonsense_manifest_is_begun_again(path, first_line):
    truth = some_rows()
    truth.write(path, 2)
    (path.parent / "F.h5.parts" / "manifest.jsonl").write_text(first_line)
    assert truth.write(path) == 6
    assert truth.matches(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"fingerprint": PRINT | {"max_length": 64}}, "max_length differs"),
        (
            {"fingerprint": PRINT | {"template": {"tags": [], "version": 1}}},
            "template.tags differs",
        ),
        ({"row_hash": np.ones((40, 16), np.uint8)}, "the rows differ"),
        ({"offsets": 7 * np.arange(41)}, "the rows differ"),
    ],
)
def test_shards_of_something_else_are_discarded_and_reported(path, change, why):
    truth = some_rows()
    truth.write(path, 3)
    with truth.writer(path, **change) as writer:
        assert writer.notes == [f"{path}.parts: an unfinished cache was discarded: {why}"]
        assert len(writer.missing) == 6
    assert leftovers(path) == []


def test_shards_of_the_same_are_kept_whatever_is_to_be_replaced(path):
    old, truth = some_rows(seed=1), some_rows()
    old.write(path)
    assert truth.write(path, 2, overwrite=True) == 2
    with truth.writer(path, overwrite=True) as writer:
        assert writer.notes == [] and len(writer.missing) == 4
    assert old.matches(path)
    assert truth.write(path, overwrite=True) == 4
    assert truth.matches(path) and leftovers(path) == []


def test_a_file_in_place_of_the_folder_is_named(path):
    Path(f"{path}.parts").touch()
    assert (
        refusal(lambda: some_rows().write(path))
        == f"{path}.parts: cannot make this folder: file exists"
    )


def test_a_folder_of_something_else_is_left_alone(path):
    (path.parent / "F.h5.parts").mkdir()
    (path.parent / "F.h5.parts" / "thesis.tex").write_text("x")
    message = refusal(lambda: some_rows().write(path))
    assert "holds thesis.tex" in message
    assert (path.parent / "F.h5.parts" / "thesis.tex").read_text() == "x"


WRITE_SLOWLY = """
    import time
    from tests.storage.test_cache import some_rows
    truth = some_rows(400, shard_rows=20)
    with truth.writer({path!r}) as writer:
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
    truth = some_rows(400, shard_rows=20)
    finished = []
    for moment in ("shard", "shard", "shard", "shard", "publishing", "publishing", "publishing"):
        process = start(WRITE_SLOWLY, path=str(path))
        if moment == "shard":
            lines = [process.stdout.readline() for _ in range(rng.randint(1, 4))]
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
    assert sum(finished[:5]) <= 20  # none of the finished shards was made again
    truth.write(path)
    truth.write(path.with_name("undisturbed.h5"))
    assert truth.matches(path)
    assert path.read_bytes() == path.with_name("undisturbed.h5").read_bytes()


# A full disk


FULL_DISK = """
    import resource
    from tests.storage.test_cache import Truth
    from twcli.errors import WorkFailed
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        print(Truth([1000] * 100, shard_rows=10).write({path!r}))
    except WorkFailed as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "doing", "left"),
    [
        (30_000, "store rows 0 to 9", 10),
        (60_000, "write the cache", 0),
        (300_000, "write the cache", 0),
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
    truth = Truth([1000] * 100, shard_rows=10)
    assert truth.write(path) == left
    assert truth.matches(path)


def test_any_single_write_may_fail(path, monkeypatch):
    """Every write, one after the other, is the first that finds the disk
    full; the next try succeeds.
    """
    truth = Truth([3000] * 30, shard_rows=10)
    real, failures = shards.write_all, 0
    for number in range(1000):
        countdown = iter(range(number))

        def full(handle, data, position=None, countdown=countdown):
            if next(countdown, None) is None:
                real(handle, memoryview(data).cast("B")[: len(data) // 2], position)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle, data, position)

        with monkeypatch.context() as patch:
            patch.setattr(shards, "write_all", full)
            patch.setattr(hdf5, "write_all", full)
            try:
                truth.write(path)
                break
            except WorkFailed as error:
                assert "no space left on device" in str(error)
                assert not list(path.parent.rglob("*.tmp"))
                failures += 1
        assert not path.exists()
    assert failures > 20
    assert truth.matches(path)
    assert leftovers(path) == []


def test_a_writer_resumes_after_a_cut_off_manifest_line(path, monkeypatch):
    truth, real = some_rows(), shards.write_all

    def torn(handle, data):
        real(handle, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with truth.writer(path) as writer:
        with monkeypatch.context() as patch, pytest.raises(WorkFailed):
            patch.setattr(shards, "write_all", torn)
            writer.write(range(7), truth.part(range(7)))
        writer.write(range(7), truth.part(range(7)))
    assert truth.write(path) == 5
    assert truth.matches(path)


# One writer, and what is there already


def test_a_second_writer_learns_who_writes_and_a_dead_one_does_not_block(path):
    process = start(WRITE_SLOWLY.replace("writer.publish()", "time.sleep(60)"), path=str(path))
    assert list(iter(process.stdout.readline, "publishing\n"))
    message = refusal(lambda: some_rows().write(path))
    process.kill()
    process.communicate()
    holder = f"process {process.pid} on {socket.gethostname()}"
    assert message == f"{path}: {holder} is writing it; wait for it or end it"
    truth = some_rows(400, shard_rows=20)
    assert truth.write(path) == 0
    assert truth.matches(path)


def test_a_second_writer_in_the_same_process_is_refused(path):
    truth = some_rows()
    with truth.writer(path):
        assert f"process {os.getpid()} on" in refusal(truth.writer(path).__enter__)
    truth.write(path)
    assert truth.matches(path)


def test_shards_of_one_row(path):
    truth = some_rows(5, shard_rows=1)
    assert truth.write(path) == 5
    assert truth.matches(path)


def test_a_published_cache_misses_nothing_and_its_folder_is_synced_after_the_rename(
    path, monkeypatch
):
    truth = some_rows()
    synced = []
    monkeypatch.setattr(
        "twcli.storage.shards.sync_folder", lambda folder: synced.append((folder, path.exists()))
    )
    with truth.writer(path) as writer:
        for rows in writer.missing:
            writer.write(rows, truth.part(rows))
        writer.publish()
        assert writer.missing == []
    assert synced[-1] == (path.parent, True)


def test_leaving_the_context_closes_the_file(path):
    some_rows().write(path)
    with Cache(path) as cache:
        cache.read(np.arange(3))
        assert str(path) in open_files()
    assert str(path) not in open_files()


def test_handles_are_closed_whoever_still_holds_them(path):
    some_rows().write(path)
    with Cache(path) as cache:
        opened = cache._open()
        assert opened.file
    assert not opened.file


def test_a_file_that_is_refused_is_closed_whoever_still_holds_it(path, monkeypatch):
    some_rows().write(path)
    opened = []

    def refuse(columns, _path):
        opened.append(columns["nll"]._dataset)
        raise UserError("refused")

    monkeypatch.setattr("twcli.storage.cache.check_offsets", refuse)
    with pytest.raises(UserError, match="refused"):
        Cache(path)
    assert len(opened) == 1 and not opened[0]


def test_the_first_thing_wrong_with_a_damaged_cache_is_named_before_it_is_replaced(path):
    truth = some_rows()
    truth.write(path)
    with Cache(path) as cache:
        address = int(cache._open().columns["nll"]._addresses[0])
    flip(path, address + 20)
    first, second = Cache(path).verify()
    said = refusal(lambda: truth.writer(path))
    assert f"{first}; pass --overwrite to start over" in said and second not in said


def test_twenty_damaged_places_are_listed_and_the_rest_counted(path):
    truth = Truth([4000] * 100)  # 25 chunks of 64 KiB
    truth.write(path, shard_rows=100)
    with Cache(path) as cache:
        addresses = cache._open().columns["nll"]._addresses.tolist()
    whole = path.read_bytes()
    with path.open("r+b") as file:
        for address in addresses:
            file.seek(address + 100)
            file.write(b"\xff")
    with Cache(path) as cache:
        _, *problems = cache.verify()  # the first is the checksum of the whole file
    assert len(addresses) == 25 and all("is damaged in entries" in line for line in problems[:20])
    assert problems[20:] == ["and 5 more damaged places"]
    with path.open("r+b") as file:
        for address in addresses[:5]:
            file.seek(address + 100)
            file.write(whole[address + 100 : address + 101])
    with Cache(path) as cache:
        assert len(cache.verify()) == 21 and "more" not in cache.verify()[-1]


def test_shards_have_4096_rows_by_default(path):
    truth = Truth([1] * 4100)
    with CacheWriter(
        path, fingerprint=PRINT, offsets=truth.offsets, row_hash=truth.row_hash
    ) as writer:
        assert writer.missing == [range(4096), range(4096, 4100)]


def test_long_values_that_differ_are_cut():
    assert first_difference({"a": "x" * 300}, {"a": 1}) == ("a", '"' + "x" * 99, "1")


def open_files():
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    }


def test_a_complete_cache_is_recognised(path):
    truth = some_rows()
    assert CacheWriter.already_complete(path, PRINT, truth.row_hash) is False
    truth.write(path)
    assert CacheWriter.already_complete(str(path), PRINT, truth.row_hash)
    assert not CacheWriter.already_complete(path, PRINT | {"weights": "bb"}, truth.row_hash)
    assert not CacheWriter.already_complete(path, PRINT, truth.row_hash[:-1])
    assert not CacheWriter.already_complete(path, PRINT, truth.row_hash ^ 1)
    assert "already complete; pass --overwrite" in refusal(lambda: truth.writer(path))
    flip(path, 3_000)
    assert not CacheWriter.already_complete(path, PRINT, truth.row_hash)
    assert "--overwrite" in refusal(lambda: truth.writer(path))


def test_shards_left_beside_a_complete_cache_are_removed(path):
    truth = some_rows()
    truth.write(path)
    published = path.read_bytes()
    path.unlink()
    truth.write(path, 3)
    path.write_bytes(published)  # as a kill between publishing and tidying up leaves it
    assert CacheWriter.already_complete(path, PRINT, truth.row_hash)
    assert leftovers(path) == []


def test_another_cache_is_replaced_only_on_demand_and_only_when_complete(path):
    old, new = some_rows(seed=1), some_rows(seed=2)
    old.write(path)
    other = PRINT | {"template": {"tags": ["<x>"], "version": 2}}
    message = refusal(lambda: new.writer(path, other))
    assert "another template.version: the cache has 1, this call has 2" in message
    assert message.endswith("pass --overwrite to replace it")
    assert new.write(path, 2, fingerprint=other, overwrite=True) == 2
    assert old.matches(path)
    new.write(path, fingerprint=other, overwrite=True)
    assert new.matches(path)
    damage = path.read_bytes()[:1000]
    path.write_bytes(damage)
    assert refusal(lambda: new.writer(path)).count("--overwrite") == 1
    new.write(path, overwrite=True)
    assert new.matches(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_cache_is_never_replaced(path, overwrite):
    path.write_text('{"x": "mine", "y": "too"}\n')
    assert (
        refusal(lambda: some_rows().writer(path, overwrite=overwrite))
        == f"{path}: is not a cache; name another --out"
    )
    assert path.read_text() == '{"x": "mine", "y": "too"}\n'
    path.unlink()
    os.mkfifo(path)
    assert "is not a cache" in refusal(lambda: some_rows().writer(path, overwrite=overwrite))


def test_an_empty_file_may_be_replaced(path):
    path.touch()
    assert "--overwrite" in refusal(lambda: some_rows().writer(path))
    some_rows().write(path, overwrite=True)
    assert some_rows().matches(path)


# What train asks


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "bb"}, 'another weights: the cache has "aa", this call has "bb"'),
        (
            {"template": {"tags": ["<x>"], "version": 2}},
            "template.version: the cache has 1, this call has 2",
        ),
        (
            {"template": {"tags": [], "version": 1}},
            'template.tags: the cache has ["<x>"], this call has []',
        ),
        ({"template": None}, "another template: the cache has {"),
        ({"dtype": "fp32"}, 'another dtype: the cache has nothing, this call has "fp32"'),
        ({"weights": "c\n" + "d" * 500}, 'this call has "c\\nddd'),
    ],
)
def test_check_names_the_field_and_both_values(path, change, said):
    truth = some_rows()
    truth.write(path)
    message = refusal(lambda: Cache(path).check(PRINT | change, truth.row_hash))
    assert said in message
    assert len(message) < 400 + len(str(path))


def test_check_names_what_is_missing_the_line_and_the_counts(path):
    truth = some_rows(6000, shard_rows=999)
    truth.write(path)
    cache = Cache(path)
    # as JSON knows it
    cache.check(PRINT | {"template": {"version": 1, "tags": ("<x>",)}}, truth.row_hash)
    fewer = {key: value for key, value in PRINT.items() if key != "max_length"}
    assert "another max_length: the cache has 128, this call has nothing" in refusal(
        lambda: cache.check(fewer, truth.row_hash)
    )
    other = truth.row_hash.copy()
    other[[4999, 5500], 15] ^= 1
    assert refusal(lambda: cache.check(PRINT, other)).endswith(
        "made from other data; the first row that differs is line 5000 of the data"
    )
    assert refusal(lambda: cache.check(PRINT | {"max_length": 1}, other)).endswith(
        "is line 5000 of the data"
    )
    other = truth.row_hash.copy()
    other[0] ^= 1
    assert refusal(lambda: cache.check(PRINT, other)).endswith(
        "the first row that differs is line 1 of the data"
    )
    assert "made from 6000 rows, the data have 5999" in refusal(
        lambda: cache.check(PRINT, truth.row_hash[:-1])
    )
    assert "the data have 6001" in refusal(
        lambda: cache.check(PRINT, np.concatenate([truth.row_hash, truth.row_hash[:1]]))
    )


# Processes


def sum_of(cache, rows):
    return float(cache.read(rows)[0].astype(float).sum())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_cache_in_use_goes_to_other_processes(path, method):
    truth = Truth([900] * 100, shard_rows=50)
    truth.write(path)
    cache = Cache(path)
    rows = [np.random.default_rng(i).permutation(100)[:30] for i in range(20)]
    wanted = [float(truth.rows_of(r).astype(float).sum()) for r in rows]
    assert sum_of(cache, rows[0]) == wanted[0]
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        futures = [pool.submit(sum_of, cache, r) for r in rows]
        assert [sum_of(cache, r) for r in rows] == wanted
        assert [future.result() for future in futures] == wanted


def test_a_forked_child_opens_its_own_handles(path):
    truth = Truth([900] * 100, shard_rows=50)
    truth.write(path)
    cache = Cache(path)
    cache.read(np.arange(3))
    inherited = cache._opened
    child = os.fork()
    if child == 0:
        own = cache._open()
        right = own is not inherited and own.source.handle != inherited.source.handle
        # checked before the fork
        right &= own.columns["nll"].touched.tolist() == [True] + [False] * 5
        right &= np.array_equal(cache.read(np.arange(100))[0], truth.nll)
        cache.close()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(cache.read(np.arange(100))[0], truth.nll)


def test_a_file_replaced_while_in_use_is_refused(path):
    some_rows(seed=1).write(path)
    cache = Cache(path)
    sent = pickle.dumps(cache)
    assert pickle.loads(sent).rows == 40
    some_rows(seed=2).write(path, overwrite=True)
    assert "was changed or replaced while in use" in refusal(lambda: pickle.loads(sent).rows)
    # this one holds the old file
    assert np.array_equal(cache.read(np.arange(40))[0], some_rows(seed=1).nll)


def test_a_file_cut_short_while_in_use_is_an_error_and_no_crash(path):
    truth = Truth([900] * 100, shard_rows=50)
    truth.write(path)
    cache = Cache(path)
    cache.read(np.arange(100))
    os.truncate(path, 10_000)
    assert "cut short while in use" in refusal(lambda: cache.read(np.arange(100)))


# Damage


def flip(path, place, bit=0):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def notices(path):
    try:
        with Cache(path) as cache:
            return bool(cache.verify())
    except UserError as error:
        assert "\n" not in str(error)
        return True


def places_outside_the_data(path):
    """All bytes that are neither in a chunk nor its checksum: HDF5's own
    structures and the gaps between.
    """
    outside = np.ones(path.stat().st_size, bool)
    with h5py.File(path) as file:
        for dataset in file.values():
            for number in range(dataset.id.get_num_chunks()):
                chunk = dataset.id.get_chunk_info(number)
                outside[chunk.byte_offset : chunk.byte_offset + chunk.size] = False
    return np.flatnonzero(outside)


@pytest.mark.slow
def test_every_flipped_bit_is_found(path):
    some_rows(3000, shard_rows=999).write(path)
    rng = np.random.default_rng(3)
    size, outside = path.stat().st_size, places_outside_the_data(path)
    assert 500 < len(outside) < size / 10
    assert not notices(path)
    for place in [*rng.integers(0, size, 300), *rng.choice(outside, 300), *range(size - 80, size)]:
        bit = int(rng.integers(0, 8))
        flip(path, place, bit)
        assert notices(path), f"bit {bit} of byte {place}"
        flip(path, place, bit)
    assert not notices(path)


def test_a_damaged_row_is_not_read(path):
    truth = Truth([900] * 100, shard_rows=50)
    truth.write(path)
    with h5py.File(path) as file:
        chunk = file["nll"].id.get_chunk_info(2)
    flip(path, chunk.byte_offset + 5000, 7)
    with Cache(path) as cache:
        assert np.array_equal(cache.read(np.arange(30))[0], truth.nll[:27000])
        said = "/nll is damaged in entries 32768 to 49151 (checksum)"
        assert said in refusal(lambda: cache.read(np.array([50])))
        assert cache.verify()[1:] == [said]


def test_the_content_checksum_finds_what_hdf5_wrote_later(path):
    truth = some_rows()
    truth.write(path)
    with h5py.File(path, "r+") as file:
        file["nll"][5:9] = [np.nan, np.inf, -1.0, 0.0]  # the last is an NLL as good as any
    assert Cache(path).verify() == [
        "its last line, the checksum of the file, is damaged or missing",
        "3 values of /nll are negative or not finite",
        "content_sha256 does not match what the file holds",
    ]


def test_a_truncated_file_is_found(path):
    some_rows().write(path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, 1000, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert notices(path), size
    path.write_bytes(whole + b"\n")
    assert notices(path)


# Files that are made to harm


def forge(path, change=lambda file: None, **attributes):
    """A cache of two rows made by h5py, then changed; without change it can be read."""
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "nll", data=np.ones(5, "<f4"), maxshape=(None,), chunks=(16384,), fletcher32=True
        )
        file.create_dataset(
            "offsets", data=np.array([0, 2, 5]), maxshape=(None,), chunks=(4096,), fletcher32=True
        )
        file.create_dataset(
            "row_hash",
            data=np.zeros((2, 16), "u1"),
            maxshape=(None, 16),
            chunks=(4096, 16),
            fletcher32=True,
        )
        good = {
            "format_version": 1,
            "fingerprint": np.bytes_(b"{}"),
            "content_sha256": np.bytes_(b"0" * 64),
        }
        for name, value in (good | attributes).items():
            if value is not None:
                file.attrs[name] = value
        change(file)


def replaced(name, **settings):
    def change(file):
        del file[name]
        file.create_dataset(name, **settings)

    return change


def nll(**settings):
    good = {
        "shape": (5,),
        "dtype": "<f4",
        "maxshape": (None,),
        "chunks": (16384,),
        "fletcher32": True,
    }
    return replaced("nll", **(good | settings))


def virtual(file):
    layout = h5py.VirtualLayout((5,), "<f4")
    layout[:] = h5py.VirtualSource("secret.h5", "nll", (5,))
    del file["nll"]
    file.create_virtual_dataset("nll", layout)


def linked(link):
    def change(file):
        file.move("nll", "row_hash2")
        file["nll"] = link
        del file["row_hash2"]

    return change


def written(name, value):
    def change(file):
        file[name][...] = value

    return change


HOSTILE = {
    "external link": (
        linked(h5py.ExternalLink("secret.h5", "/nll")),
        "/nll is a link to somewhere else",
    ),
    "soft link": (linked(h5py.SoftLink("/offsets")), "/nll is a link to somewhere else"),
    "external storage": (
        replaced("nll", shape=(5,), dtype="<f4", external=[("secret.bin", 0, 20)]),
        "/nll is not stored in plain chunks",
    ),
    "virtual dataset": (virtual, "/nll is not stored in plain chunks"),
    "4 TB": (nll(shape=(10**12,)), "declares more data than the file has bytes"),
    "4 TB of offsets": (
        replaced(
            "offsets",
            shape=(10**12,),
            dtype="<i8",
            maxshape=(None,),
            chunks=(4096,),
            fletcher32=True,
        ),
        "its shapes do not fit together",
    ),
    "nothing stored": (nll(), "/nll is not completely there"),
    "contiguous": (replaced("nll", data=np.ones(5, "<f4")), "/nll is not stored in plain chunks"),
    "no checksum": (nll(fletcher32=False), "/nll is not stored in plain chunks"),
    "a bomb": (nll(compression="gzip"), "/nll is not stored in plain chunks"),
    "other chunks": (nll(chunks=(100,)), "/nll has the wrong type or shape"),
    "float64": (nll(dtype="<f8"), "/nll has the wrong type or shape"),
    "big-endian": (nll(dtype=">f4"), "/nll has the wrong type or shape"),
    "two axes": (
        nll(shape=(5, 1), maxshape=(None, 1), chunks=(16384, 1)),
        "/nll has the wrong type",
    ),
    "narrow hashes": (
        replaced(
            "row_hash",
            shape=(2, 5),
            dtype="u1",
            maxshape=(None, None),
            chunks=(4096, 16),
            fletcher32=True,
        ),
        "/row_hash has the wrong type or shape",
    ),
    "strings": (
        nll(dtype=h5py.string_dtype(), fletcher32=False),
        "/nll is not stored in plain chunks",
    ),
    "a group": (lambda file: (file.pop("nll"), file.create_group("nll")), "/nll is not a dataset"),
    "a type": (
        lambda file: (file.pop("nll"), file.__setitem__("nll", np.dtype("<f4"))),
        "/nll is not a",
    ),
    "missing": (lambda file: file.pop("row_hash"), "it has no /row_hash"),
    "extra": (lambda file: file.create_group("zzz"), "it holds /zzz"),
    "too few offsets": (
        lambda file: file["offsets"].resize((2,)),
        "its shapes do not fit together",
    ),
    "no rows": (
        lambda file: (file["offsets"].resize((1,)), file["row_hash"].resize((0, 16))),
        "its shapes",
    ),
    "offsets fall": (written("offsets", [0, 6, 5]), "its offsets fall"),
    "offsets begin late": (written("offsets", [1, 2, 5]), "its offsets fall or do not begin at 0"),
    "offsets below 0": (written("offsets", [0, -(2**62), 5]), "its offsets fall"),
    "offsets too long": (written("offsets", [0, 2, 6]), "its offsets do not end with the tokens"),
    "offsets too short": (written("offsets", [0, 2, 4]), "its offsets do not end with the tokens"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_structure_is_refused(path, name):
    with h5py.File(path.parent / "secret.h5", "w") as file:
        file["nll"] = np.ones(5, "<f4")
    (path.parent / "secret.bin").write_bytes(bytes(20))
    change, said = HOSTILE[name]
    forge(path)
    # so it is the change that is refused
    assert Cache(path).read(np.array([1]))[0].tolist() == [1, 1, 1]
    forge(path, change)
    message = refusal(lambda: Cache(path))
    assert said in message
    assert "make it again with `twcli precompute --overwrite`" in message


@pytest.mark.parametrize("block", [1, 2, 3])
def test_offsets_are_checked_across_blocks(path, monkeypatch, block):
    monkeypatch.setattr(hdf5, "BLOCK", block)
    forge(path)
    assert Cache(path).rows == 2
    for offsets in ([0, 6, 5], [1, 2, 5], [0, -1, 5], [0, 2, 4]):
        forge(path, written("offsets", offsets))
        assert "its offsets" in refusal(lambda: Cache(path))


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"format_version": 2}, "it has format version 2, this twcli reads 1"),
        ({"format_version": None}, "it has no attribute format_version"),
        ({"format_version": [1, 1]}, "format_version has the wrong type"),
        ({"format_version": "1"}, "format_version has the wrong type"),
        ({"fingerprint": None}, "it has no attribute fingerprint"),
        ({"fingerprint": "{}"}, "fingerprint has the wrong type"),
        ({"fingerprint": np.bytes_(b'{"a": ')}, "its attribute fingerprint is not a JSON object"),
        ({"fingerprint": np.bytes_(b"\xff\xfe")}, "its attribute fingerprint is not a JSON object"),
        (
            {"fingerprint": np.bytes_(b"[" * 30_000)},
            "its attribute fingerprint is not a JSON object",
        ),
        ({"fingerprint": np.bytes_(b'{"a": NaN}')}, "JSON"),
        ({"fingerprint": np.bytes_(b"[1]")}, "its attribute fingerprint is not a JSON object"),
        ({"fingerprint": np.bytes_(b'{"a": "' + b"x" * 32_000 + b'"}')}, "the wrong type or size"),
        ({"content_sha256": None}, "it has no attribute content_sha256"),
        ({"content_sha256": 3}, "content_sha256 has the wrong type"),
    ],
)
def test_hostile_attributes_are_refused(path, attributes, said):
    forge(path, **attributes)
    assert said in refusal(lambda: Cache(path))


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "pipe", "below a file"])
def test_what_is_no_cache_file_is_refused(path, kind):
    make = {
        "folder": path.mkdir,
        "text": lambda: path.write_text("x" * 1000),
        "empty": path.touch,
        "pipe": lambda: os.mkfifo(path),
        "below a file": path.touch,
    }
    make.get(kind, list)()
    target = path / "F.h5" if kind == "below a file" else path
    said = {"missing": "no such file", "below a file": "not a directory"}.get(
        kind, "is not an HDF5 file"
    )
    assert said in refusal(lambda: Cache(target))
