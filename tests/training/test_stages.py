import threading
from itertools import pairwise

import numpy as np
import pytest

from twcli.data.batches import BatchSampler
from twcli.training.stages import Stage, batches, prefetch, remaining, stages_of

LENGTHS, PROMPTS = np.full(60, 10), np.repeat(np.arange(20), 3)
HELD = np.arange(30)


def batch_sampler_of(stage, rows):
    return BatchSampler(LENGTHS, PROMPTS, batch_tokens=60, seed=[*stage.encode()], rows=rows)


def run(step=0, rank=0, processes=1):
    return [
        (name, rows)
        for name, (rows,) in batches(
            STAGES, step, batch_sampler_of, HELD, rank=rank, processes=processes
        )
    ]


STAGES = stages_of(20, hold=0.25, release=0.1, warm=True)


def test_stages_by_hand():
    assert STAGES == [Stage("hold", 0, 5), Stage("refine", 5, 18), Stage("free", 18, 20)]
    assert stages_of(20, hold=0.25, release=0.1, warm=False) == [Stage("free", 0, 20)]
    assert stages_of(1, hold=0.15, release=0.0, warm=True) == [Stage("refine", 0, 1)]
    assert stages_of(10, hold=1.0, release=0.0, warm=True) == [Stage("hold", 0, 10)]


def test_what_lies_ahead_of_a_stage():
    assert [remaining(STAGES, step, "refine") for step in (5, 11, 17)] == [1, 7 / 13, 1 / 13]


def test_each_stage_reads_its_own_rows():
    steps = run()
    assert [name for name, _ in steps] == ["hold"] * 5 + ["refine", "settle"] * 6 + ["refine"] + [
        "free"
    ] * 2
    held = [rows for name, rows in steps if name == "hold"]
    assert set(np.concatenate(held)) == set(HELD)
    for (one, rows), (two, again) in pairwise(steps):
        if (one, two) == ("refine", "settle"):
            assert rows is again
    refined = np.concatenate([rows for name, rows in steps if name == "refine"])
    assert len(refined) == len(set(refined)) == 42  # 7 batches of an epoch of 10


@pytest.mark.parametrize("step", [1, 5, 6, 7, 17, 18, 19])
def test_a_resumed_run_repeats_the_rest(step):
    whole, rest = run()[step:], run(step)
    assert len(whole) == len(rest) and all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(whole, rest, strict=True)
    )


def test_processes_read_disjoint_rows():
    one, two = run(rank=0, processes=2), run(rank=1, processes=2)
    assert all(not set(a[1]) & set(b[1]) for a, b in zip(one[:2], two[:2], strict=True))
    assert [name for name, _ in one] == [name for name, _ in two]


def test_one_process_reads_in_turn_what_several_read_at_once():
    alone = list(batches(STAGES, 0, batch_sampler_of, HELD, accumulate=4))
    ranks = [
        list(batches(STAGES, 0, batch_sampler_of, HELD, rank=rank, processes=2, accumulate=2))
        for rank in range(2)
    ]
    for step, (name, rows) in enumerate(alone):
        assert all(r[step][0] == name for r in ranks)
        assert np.array_equal(
            np.concatenate(rows), np.concatenate([part for r in ranks for part in r[step][1]])
        )


def test_reading_ahead_gives_every_step_its_own_batches():
    read = []

    def batch(rows):
        assert threading.current_thread() is not threading.main_thread()
        read.append(rows)
        return 10 * rows

    first, second = [1, 2], [3]
    steps = iter([("refine", first), ("settle", first), ("hold", second), ("refine", [1, 2])])
    found = list(prefetch(steps, batch))
    assert found == [
        ("refine", [10, 20]),
        ("settle", [10, 20]),
        ("hold", [30]),
        ("refine", [10, 20]),
    ]
    assert read == [1, 2, 3, 1, 2]  # the same rows at once again were not read again
    assert list(prefetch(iter([]), batch)) == []


def test_the_next_step_is_read_while_this_one_is_computed():
    begun = {rows: threading.Event() for rows in range(3)}
    stream = prefetch((("free", [rows]) for rows in range(3)), lambda rows: begun[rows].set())
    next(stream)
    assert begun[1].wait(60) and not begun[2].is_set()  # one ahead, and no more
    stream.close()


def test_what_fails_in_reading_is_raised_at_its_own_step():
    def read(rows):
        if rows == 1:
            raise OSError("unreadable")

    stream = prefetch((("free", [rows]) for rows in range(3)), read)
    assert next(stream) == ("free", [None])
    with pytest.raises(OSError, match="unreadable"):
        next(stream)
