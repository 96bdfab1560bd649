from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import encode, make_records, make_tokenizer
from twcli.data.batches import BatchSampler, collate, drop_history, forward_batches, opening
from twcli.data.encoder import ExampleEncoder
from twcli.data.padding import gather_padded, prompt_by_prompt

# Vocabulary of conftest: <pad>=0 <bos>=1 <eos>=2 <unk>=3 <x>=4 </x>=5 <y>=6 </y>=7
# <z>=8 </z>=9 w0=10 w1=11 ...


class FlatCache:
    """Stands in for the cache file: b_t of row i counts up from 10 i."""

    def __init__(self, lengths):
        self.lengths = lengths

    def read(self, rows):
        lengths = self.lengths[rows]
        return np.concatenate(
            [10 * r + np.arange(n) for r, n in zip(rows, lengths, strict=True)]
        ).astype(np.float32), lengths


def test_batch_by_hand(encoder):
    encoded = encode(encoder, [{"x": "w0 w1", "y": "w2"}, {"x": "w3", "y": "w4 w5 w6"}])
    batch = collate(np.array([1, 0]), encoded, encoder, FlatCache(encoded.target_lengths))
    assert batch.plain_BT.tolist() == [
        [1, 4, 13, 5, 6, 14, 15, 16, 7, 2],
        [1, 4, 10, 11, 5, 6, 12, 7, 2, 0],
    ]
    assert batch.latent_BL.tolist() == [
        [1, 4, 13, 5, 8, 0, 9, 6, 14, 15, 16, 7, 2],
        [1, 4, 10, 11, 5, 8, 0, 9, 6, 12, 7, 2, 0],
    ]
    assert batch.slot_B.tolist() == [5, 6]
    assert batch.plain_first_B.tolist() == [4, 5] and batch.latent_first_B.tolist() == [7, 8]
    assert batch.targets_BS.tolist() == [[14, 15, 16, 7], [12, 7, 0, 0]]
    assert batch.active_BS.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.baseline_BS.tolist() == [[10, 11, 12, 13], [0, 1, 0, 0]]


def test_batch_with_two_tokens_a_latent_by_hand():
    encoder = ExampleEncoder(make_tokenizer(), "tiny", latent_tokens=2)
    encoded = encode(encoder, [{"x": "w0 w1", "y": "w2"}, {"x": "w3", "y": "w4"}])
    batch = collate(np.array([0, 1]), encoded, encoder, None)
    assert batch.latent_BL.tolist() == [
        [1, 4, 10, 11, 5, 8, 0, 0, 9, 6, 12, 7, 2],
        [1, 4, 13, 5, 8, 0, 0, 9, 6, 14, 7, 2, 0],
    ]
    assert batch.slot_B.tolist() == [6, 5] and batch.latent_first_B.tolist() == [9, 8]


def test_dropped_history_by_hand(encoder):
    encoded = encode(encoder, [{"x": "w0 w1", "y": "w2"}, {"x": "w3", "y": "w4 w5 w6"}])
    whole = collate(np.array([1, 0]), encoded, encoder, FlatCache(encoded.target_lengths))
    # All of y goes; prompt, tags and what follows y stay.
    bare = drop_history(whole, 1.0, np.random.default_rng(0), pad=0)
    assert bare.latent_BL.tolist() == [
        [1, 4, 13, 5, 8, 0, 9, 6, 0, 0, 0, 7, 2],
        [1, 4, 10, 11, 5, 8, 0, 9, 6, 0, 7, 2, 0],
    ]
    for name in ("plain_BT", "targets_BS", "active_BS", "baseline_BS"):
        assert getattr(bare, name) is getattr(whole, name)
    assert whole.latent_BL[0, 8] == 14  # the batch itself is left as it was
    assert (
        drop_history(whole, 0.0, np.random.default_rng(0), pad=0).latent_BL.tolist()
        == whole.latent_BL.tolist()
    )


def test_history_is_dropped_at_the_rate(encoder):
    encoded = encode(encoder, [{"x": "w0", "y": " ".join(["w1"] * 80)}] * 50)
    batch = drop_history(
        collate(np.arange(50), encoded, encoder, None), 0.3, np.random.default_rng(0), pad=0
    )
    # 50 slots are pads too
    assert (batch.latent_BL == 0).sum().item() - 50 == pytest.approx(0.3 * 50 * 80, rel=0.1)


def test_targets_are_the_same_ids_in_both_sequences(encoder):
    encoded = encode(encoder, make_records(9, 2))
    batch = collate(np.arange(18), encoded, encoder, None)
    for ids, first in (
        (batch.plain_BT, batch.plain_first_B),
        (batch.latent_BL, batch.latent_first_B),
    ):
        for row in range(18):
            n = int(batch.active_BS[row].sum())
            assert ids[row, first[row]] == encoder.template.before_y[-1]
            assert (
                ids[row, first[row] + 1 : first[row] + 1 + n].tolist()
                == batch.targets_BS[row, :n].tolist()
            )
    assert batch.baseline_BS is None


def weighted(encoded, encoder, weights):
    batch = collate(np.arange(len(encoded)), encoded, encoder, None)
    return replace(batch, baseline_BS=torch.tensor(weights))


def test_an_opening_by_hand(encoder):
    encoded = encode(encoder, [{"x": "w0 w1", "y": "w2 w3"}, {"x": "w3", "y": "w4 w5 w6"}])
    batch = weighted(encoded, encoder, [[2.0, 1.0, 0.0, 0.0], [4.0, 2.0, 0.75, 0.25]])
    whole, lost = opening(batch, 0.02)  # the last token of all holds 0.025
    assert whole is batch and lost == 0
    cut, lost = opening(batch, 0.1)
    assert lost == pytest.approx(0.1) and cut.targets_BS.tolist() == [[12, 13], [14, 15]]
    assert cut.active_BS.tolist() == [[True, True]] * 2 and cut.baseline_BS.tolist() == [
        [2, 1],
        [4, 2],
    ]
    # the longest prompt's `<y>` and one input token
    assert cut.plain_BT.tolist() == [[1, 4, 10, 11, 5, 6, 12], [1, 4, 13, 5, 6, 14, 15]]
    assert cut.latent_BL.tolist() == [
        [1, 4, 10, 11, 5, 8, 0, 9, 6, 12],
        [1, 4, 13, 5, 8, 0, 9, 6, 14, 15],
    ]


def test_an_opening_needs_weights(encoder):
    encoded = encode(encoder, make_records())
    bare = collate(np.arange(4), encoded, encoder, None)
    assert opening(bare, 0.5)[0] is bare
    flat = replace(bare, baseline_BS=torch.zeros(bare.active_BS.shape))
    cut, lost = opening(flat, 0.5)
    assert cut is flat and lost == 0


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(5, 80, 300)


@pytest.fixture
def prompts():
    return np.random.default_rng(1).integers(0, 120, 300)


def test_an_epoch_holds_every_row_once_within_budget(lengths, prompts):
    batches = BatchSampler(lengths, prompts, batch_tokens=800, seed=[1]).epoch(0)
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(b) * lengths[b].max() <= 800 for b in batches)
    # a prompt is in one batch
    assert all(sum(prompt in prompts[b] for b in batches) == 1 for prompt in np.unique(prompts))


def test_single_rows_leave_little_padding(lengths):
    batches = BatchSampler(lengths, np.arange(300), batch_tokens=400, seed=[1]).epoch(0)
    assert sum(lengths) / sum(len(b) * lengths[b].max() for b in batches) > 0.9


def test_a_prompt_beyond_the_budget_is_cut(lengths):
    batches = BatchSampler(
        lengths, np.r_[np.zeros(200, int), np.arange(1, 101)], batch_tokens=400, seed=[1]
    ).epoch(0)
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(b) * lengths[b].max() <= 400 for b in batches)


def test_a_plan_goes_through_the_rows_it_is_given(lengths, prompts):
    rows = np.arange(7, 300, 11)
    sampler = BatchSampler(lengths, prompts, batch_tokens=400, seed=[1], rows=rows)
    assert sorted(np.concatenate(sampler.epoch(0))) == rows.tolist()
    assert (
        list(BatchSampler(lengths, prompts, batch_tokens=400, seed=[1], rows=rows[:0]).stream())
        == []
    )


def test_rows_are_repeated_as_often_as_asked_within_budget(lengths, prompts):
    repeats = np.ones(300)
    repeats[:20], repeats[20:60] = 3.0, 1.5
    sampler = BatchSampler(lengths, prompts, batch_tokens=400, seed=[1], repeats=repeats)
    epochs = [sampler.epoch(number) for number in range(60)]
    times = np.array([np.bincount(np.concatenate(epoch), minlength=300) for epoch in epochs])
    assert (times[:, :20] == 3).all() and (times[:, 60:] == 1).all()
    assert set(np.unique(times[:, 20:60])) == {1, 2}
    assert times[:, 20:60].mean() == pytest.approx(1.5, abs=0.05)  # 5 standard errors of 2,400
    assert all(len(b) * lengths[b].max() <= 400 for epoch in epochs for b in epoch)
    again = BatchSampler(lengths, prompts, batch_tokens=400, seed=[1], repeats=repeats)
    assert np.array_equal(np.concatenate(again.epoch(7)), np.concatenate(epochs[7]))


def test_no_rows_make_no_batches_repeated_or_not(lengths, prompts):
    for repeats in (None, np.ones(300)):
        sampler = BatchSampler(
            lengths, prompts, batch_tokens=400, seed=[1], rows=np.arange(0), repeats=repeats
        )
        assert list(sampler.stream()) == []


def test_order_depends_on_seed_and_epoch_alone(lengths, prompts):
    def flat(seed, epoch):
        return np.concatenate(
            BatchSampler(lengths, prompts, batch_tokens=400, seed=seed).epoch(epoch)
        ).tolist()

    assert flat([1], 0) == flat([1], 0)
    assert (
        flat([1], 0) != flat([1], 1)
        and flat([1], 0) != flat([2], 0)
        and flat([1], 0) != flat([1, 5], 0)
    )


@pytest.mark.parametrize("skip", [0, 1, 30, 100])
def test_a_resumed_stream_resumes_where_it_stopped(lengths, prompts, skip):
    sampler = BatchSampler(lengths, prompts, batch_tokens=400, seed=[1])
    whole = [b for _, b in zip(range(140), sampler.stream(0), strict=False)]
    rest = [b for _, b in zip(range(40), sampler.stream(skip), strict=False)]
    assert all(np.array_equal(a, b) for a, b in zip(whole[skip:], rest, strict=False))
    assert len(sampler.epoch(0)) < 100  # the longest skip crosses an epoch


def test_gather_padded_by_hand():
    flat = np.arange(10)
    assert gather_padded(flat, np.array([2, 8]), np.array([3, 2]), -1).tolist() == [
        [2, 3, 4],
        [8, 9, -1],
    ]


def test_prompt_by_prompt_by_hand():
    assert prompt_by_prompt(np.array([3, 9, 4, 8, 9]), np.array([7, 2, 7, 5, 2])).tolist() == [
        1,
        4,
        3,
        2,
        0,
    ]
    assert prompt_by_prompt(np.empty(0, int), np.empty(0, int)).tolist() == []


def records_with(x_words, y_words):
    """Five prompts, four completions each, that of the same number equally long for all."""
    return [
        {"x": f"w{p} " * x_words, "y": "w1 " * (y_words + c)} for c in range(4) for p in range(5)
    ]


@pytest.mark.parametrize(
    ("x_words", "y_words", "shared", "together"),
    [(40, 3, True, True), (40, 3, False, False), (1, 3, True, False)],
)
def test_prompts_stand_together_in_reading_where_that_reads_less(
    encoder, x_words, y_words, shared, together
):
    encoded = encode(encoder, records_with(x_words, y_words))
    rows = np.arange(len(encoded))[::-1]
    batches = forward_batches(encoded, rows, batch_tokens=220, branches=4, shared=shared)
    assert sorted(np.concatenate(batches).tolist()) == list(range(20))
    assert all(encoded.lengths[rows[places]].max() * len(places) <= 220 for places in batches)
    prompts = [set(encoded.prompt_index[rows[places]].tolist()) for places in batches]
    assert (max(map(len, prompts)) == 1) is together
