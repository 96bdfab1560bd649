"""Arrays on disk are the pieces that were added, whatever becomes of the spool."""

import errno
import tempfile

import numpy as np
import pytest

from twcli.storage.disk_array import DiskArray


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.dtype("V16")])
def test_pieces_follow_one_another_and_outlive_the_spool(dtype):
    pieces = [
        np.arange(count * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype)
        for count in (3, 0, 5)
    ]
    with DiskArray(dtype) as array_file:
        for piece in pieces:
            array_file.append(piece)
        array = array_file.array()
    assert array.dtype == dtype and np.array_equal(array, np.concatenate(pieces))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = array[1]


def test_numbers_take_the_spools_type():
    with DiskArray(np.int32) as array_file:
        array_file.append([1, 2])
        array_file.append(np.array([3], np.int64))
        assert array_file.array().tolist() == [1, 2, 3]


def test_nothing_added_is_an_empty_array():
    with DiskArray(np.int64) as array_file:
        array = array_file.array()
    assert array.shape == (0,) and array.dtype == np.int64


def test_nothing_is_left_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with DiskArray(np.int64) as array_file:
        array_file.append([7])
        assert array_file.array().tolist() == [7] and not list(tmp_path.iterdir())


def test_a_full_disk_is_reported(monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))
    with pytest.raises(OSError) as full, DiskArray(np.uint8) as array_file:
        array_file.append([1])
    assert full.value.errno == errno.ENOSPC and full.value.filename == tempfile.gettempdir()


def test_a_full_disk_is_reported_of_what_waited_to_be_written(monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb"))
    with pytest.raises(OSError) as left, DiskArray(np.uint8) as array_file:
        array_file.append([1])
        with pytest.raises(OSError) as read:
            array_file.array()
    assert {read.value.filename, left.value.filename} == {tempfile.gettempdir()}
