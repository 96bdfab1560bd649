from types import SimpleNamespace

import numpy as np
import pytest

from twcli.data.groups import Groups
from twcli.discovery import result
from twcli.discovery import rows as rows_module
from twcli.discovery.result import canonical_order, counts_of, rename
from twcli.discovery.rows import CHUNK_ROWS, Rows, spread_to_equal_rows

SIZES = np.array([1, CHUNK_ROWS, 3, 2 * CHUNK_ROWS + 5, CHUNK_ROWS + 1, 2])


@pytest.fixture
def rows():
    return Rows(np.random.default_rng(0).permutation(SIZES.sum()), SIZES)


def test_large_prompts_come_in_chunks_and_the_others_whole(rows):
    expected = []
    for prompt in np.split(rows.rows, np.cumsum(SIZES)[:-1]):
        cuts = range(CHUNK_ROWS, len(prompt), CHUNK_ROWS)
        expected += [chunk.tolist() for chunk in np.split(prompt, cuts)]
    chunks = rows.chunks()
    assert [chunk.tolist() for chunk in chunks] == expected
    assert chunks.sizes.tolist() == [len(chunk) for chunk in expected]


def test_groups_are_taken_like_a_list_of_arrays(rows):
    groups, order = rows.groups(), np.array([3, 0, 5])
    each = np.split(rows.rows, np.cumsum(SIZES)[:-1])
    assert groups[order].joined().tolist() == np.concatenate([each[i] for i in order]).tolist()
    assert groups[order].count() == SIZES[order].sum()
    assert [len(block) for block in groups.blocks(4)] == [4, 2]
    several = rows.groups(3)
    assert [len(group) for group in several] == [size for size in SIZES if size >= 3]
    nothing = Groups(rows.rows, np.empty(0, int), np.empty(0, int))
    assert not len(nothing) and not len(nothing.joined()) and nothing.count() == 0


@pytest.mark.parametrize("at_once", [3, 2**16])
def test_equal_rows_get_what_the_first_of_them_has(monkeypatch, at_once):
    monkeypatch.setattr(rows_module, "ROWS_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    kind_N = rng.integers(0, 6, 50)
    hash_NH = rng.integers(0, 256, (6, 16), np.uint8)[kind_N]
    first = {kind: row for row, kind in reversed(list(enumerate(kind_N.tolist())))}
    column = rng.normal(size=50)
    expected = [column[first[kind]] for kind in kind_N.tolist()]
    spread_to_equal_rows(SimpleNamespace(row_hash=hash_NH), column)
    assert column.tolist() == expected


@pytest.mark.parametrize("at_once", [7, 2**16])
def test_names_are_counted_changed_and_ordered_a_part_at_a_time(monkeypatch, at_once):
    """Latents of one share are ordered by the first tokens of any of their rows."""
    monkeypatch.setattr(result, "ROWS_AT_ONCE", at_once)
    latent_N = np.array([*[1] * 20, *[0] * 20, *[2] * 9, -1], np.int32)
    order = np.random.default_rng(2).permutation(50)
    latent_N, start_N = latent_N[order], np.random.default_rng(3).permutation(50) + 10
    ids = np.stack([start_N, np.zeros(50, int)], axis=1).reshape(-1)  # y of one token, its end
    encoded = SimpleNamespace(
        ids=ids,
        offsets=np.arange(51) * 2,
        prompt_lengths=np.full(50, -1),
        target_lengths=np.full(50, 2),
    )
    assert counts_of(latent_N, 4).tolist() == [20, 20, 9, 0]
    least = [start_N[latent_N == k].min() for k in (0, 1)]
    leads = int(least[1] < least[0])
    order_K, new_K = canonical_order(latent_N, 4, encoded)
    assert order_K.tolist() == [leads, 1 - leads, 2, -1]
    renamed_N = latent_N.copy()
    rename(renamed_N, new_K)
    assert renamed_N.tolist() == [-1 if k < 0 else int(new_K[k]) for k in latent_N.tolist()]
