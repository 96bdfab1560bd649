import numpy as np
import pytest

from twcli.data import equal_rows
from twcli.data.equal_rows import copies_of_first, distinct, first_of_equal, index_type


def hashes(rows, kinds, seed=0):
    """(N, 16) uint8, of so many kinds at most."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (kinds, 16), np.uint8)[rng.integers(0, kinds, rows)]


@pytest.mark.parametrize("at_once", [1, 2**16])
@pytest.mark.parametrize("kinds", [1, 40, 3000])
def test_equal_rows_are_found_as_numpy_finds_them(monkeypatch, at_once, kinds):
    monkeypatch.setattr(equal_rows, "AT_ONCE", at_once)  # 1: parts by the first byte
    hash_NH = hashes(500, kinds)
    _, first, inverse, copies = np.unique(
        hash_NH, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    assert first_of_equal(hash_NH).tolist() == first[inverse.reshape(-1)].tolist()
    assert distinct(hash_NH).tolist() == sorted(first)
    expected_N = np.zeros(500, int)
    expected_N[first] = copies
    assert copies_of_first(hash_NH).tolist() == expected_N.tolist()


def test_hashes_that_differ_in_one_byte_are_not_equal():
    hash_NH = np.zeros((17, 16), np.uint8)
    hash_NH[np.arange(16), np.arange(16)] = 1
    assert first_of_equal(hash_NH).tolist() == list(range(17))


def test_no_rows_and_the_type_of_row_numbers():
    assert len(first_of_equal(np.empty((0, 16), np.uint8))) == 0
    assert index_type(2**31 - 1) == np.int32 and index_type(2**31) == np.int64
