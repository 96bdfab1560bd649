import threading
from itertools import pairwise

import numpy as np
import pytest

from twcli.data.batches import BatchSampler
from twcli.training.held_out import measured_every
from twcli.training.stages import Course, Repetitions, batches, prefetch, schedule

LENGTHS, PROMPTS = np.full(60, 10), np.repeat(np.arange(20), 3)
NAMED, ROWS = np.arange(30), np.arange(54)


def sampler_of(stage, rows):
    return BatchSampler(LENGTHS, PROMPTS, batch_tokens=60, seed=[*stage.encode()], rows=rows)


def course(steps=20, opened=5, **changes):
    return Course(steps, named=True, corrected=True, opened=opened, **changes)


def run(step=0, rank=0, processes=1):
    return [
        (name, rows)
        for name, (rows,) in batches(
            course(), step, sampler_of, NAMED, ROWS, rank=rank, processes=processes
        )
    ]


def seen(nll=1.0, agreement=1.0, certainty=1.0, behind=False, below=False, error=0.01):
    return {
        "held_out_nll": nll,
        "held_out_nll_error": error,
        "held_out_agreement": [agreement, 1.0, None],
        "held_out_certainty": certainty,
        "held_out_posterior": 1.0,
        "held_out_behind": [behind or below] * 3,
        "held_out_below": [below, False, False],
    }


def test_a_named_run_holds_and_then_refines_and_settles_by_turns():
    steps = run()
    assert [name for name, _ in steps] == ["hold"] * 5 + ["refine", "settle"] * 7 + ["refine"]
    held = [rows for name, rows in steps if name == "hold"]
    assert set(np.concatenate(held)) == set(NAMED)
    for (one, rows), (two, again) in pairwise(steps):
        if (one, two) == ("refine", "settle"):
            assert rows is again
    refined = np.concatenate([rows for name, rows in steps if name == "refine"])
    assert len(refined) == len(set(refined)) == 48 and refined.max() < 54


def test_rare_latents_are_repeated_by_the_square_root_of_their_share():
    latents = np.array([0] * 64 + [1] * 16 + [2] * 4 + [-1] * 5)
    rows = np.flatnonzero(latents >= 0)
    found = Repetitions.of(latents, rows)
    repeats = found.times_N
    assert repeats[:64].tolist() == [1.0] * 64
    assert repeats[64:80].tolist() == [2.0] * 16 and repeats[80:84].tolist() == [4.0] * 4
    assert repeats[84:].tolist() == [1.0] * 5  # no name: not held
    # what is taken counts as if each row were taken once, with a mean of 1
    counted = repeats * found.weight_N
    assert np.allclose(counted, counted[0])
    assert counted[rows].sum() == pytest.approx(repeats[rows].sum())
    assert Repetitions.of(latents, rows[:0]).times_N.tolist() == [1.0] * 89
    even = Repetitions.of(np.repeat([0, 1, 2], 8), np.arange(24))
    assert (even.times_N == 1.0).all() and (even.weight_N == 1.0).all()


def test_without_names_a_run_is_free():
    free = Course(3, named=False)
    assert [name for name, _ in batches(free, 0, sampler_of, NAMED[:0], ROWS)] == ["free"] * 3


def test_names_are_corrected_once_the_generator_reads_the_latents():
    one = course(opened=None)
    for step in (1, 2, 3):
        one.observe(step, seen(agreement=0.9, certainty=0.6))
    one.observe(6, seen(agreement=0.4))
    one.observe(7, seen(agreement=0.9, below=True))  # one latent is not yet what the others are
    assert one.opened is None and one.stage(7) == "hold"
    one.observe(9, seen(agreement=0.9))
    # the batch of step 9 is being read
    assert one.opened == 10 and one.stage(9) == "hold" and one.stage(10) == "refine"
    one.observe(12, seen(certainty=0.0))
    assert one.opened == 10
    repeating = Course(20, named=True, corrected=False)
    for step in (1, 2, 3, 9):
        repeating.observe(step, seen(agreement=0.9))
    assert repeating.opened is None and repeating.stage(19) == "hold"


def opened_by(*agreements):
    """Step at which names are first corrected, measured after every tenth."""
    one = course(steps=200, opened=None)
    for number, agreement in enumerate(agreements, start=1):
        one.observe(10 * number, seen(agreement=agreement))
    return one.opened


def test_names_are_kept_while_two_latents_are_still_alike():
    assert opened_by(0.55, 0.8, 0.9) is None  # it still learns to distinguish them
    assert opened_by(0.55, 0.8, 0.96, 0.96, 0.96) is None  # they are as it writes
    assert opened_by(0.8, 1.0, 1.0, 0.94, 0.97) is None  # one measurement is a matter of chance
    assert opened_by(0.55, 0.8, 0.75) is None
    # it does not agree with more of the names: the others may be wrong
    assert opened_by(0.55, 0.8, 0.75, 0.8) == 41
    assert opened_by(0.3, 0.3, 0.3, 0.3) is None  # it distinguishes nothing


def measured(*nlls, steps=100, **changes):
    """A run that has been measured at every tenth step."""
    one = Course(steps, named=True, may_end=True)
    for number, nll in enumerate(nlls, start=1):
        one.observe(10 * number, seen(nll=nll, **changes))
    return one


def test_a_run_ends_early_where_nothing_improves_and_not_before():
    assert measured(9, 8, 7, 6, 5, 4, 3).steps == 100  # goes on falling
    assert measured(5, 5, 5).cooling is None  # too few measurements to tell
    ended = measured(9, 5, 5, 5, 5)
    assert ended.cooling == 51 and ended.steps == 51 + 13
    assert measured(9, 5, 5, 5, 5, below=True).steps == 100  # a strategy is not yet what it was
    assert measured(9, 5, 5, 5, 5, behind=True).steps == 100  # nor is any of them
    assert measured(9, 5, 5, 5, 5, agreement=0.9).steps == 100
    renamed = Course(100, named=True, corrected=True, may_end=True)
    for number, nll in enumerate((2, 2, 2, 4, 4, 4, 3, 2.5), start=1):
        renamed.observe(10 * number, seen(nll=nll, agreement=0.9 if number < 4 else 1.0))
    assert renamed.opened == 31 and renamed.cooling is None  # it was 2 under names that were kept
    fixed = Course(100, named=True)
    for number in range(1, 8):
        fixed.observe(10 * number, seen())
    assert fixed.steps == 100  # --steps were given


def test_the_latent_section_grows_in_the_first_quarter_and_nothing_counts_before():
    grown = [course(steps=200, grows=True).section_width(step) for step in (0, 10, 50, 199)]
    assert grown == [0, 0.2, 1, 1]
    assert course(steps=200).section_width(0) == 1
    one = course(steps=200, opened=None, grows=True)
    for step in (10, 20, 30, 40):
        one.observe(step, seen(nll=0.1, agreement=0.9))
    assert one.opened is None
    for step in (50, 60, 70):
        assert one.opened is None
        one.observe(step, seen(nll=5.0, agreement=0.9))
    assert one.opened == 71
    ended = Course(100, named=True, may_end=True, grows=True)
    for number, nll in enumerate((1, 1, 5, 4, 3, 2, 2, 2), start=1):
        ended.observe(10 * number, seen(nll=nll))
    assert ended.cooling is None  # 2 is the best at the positions that stay
    ended.observe(90, seen(nll=2))
    assert ended.cooling == 91


@pytest.mark.parametrize(("step", "share"), [(0, 0.05), (19, 1.0), (20, 1.0), (400, 0.1)])
def test_schedule(step, share):
    assert schedule(step, 400) == pytest.approx(share)


def test_the_rate_of_a_run_that_ends_early_falls_to_its_end():
    ended = measured(9, 5, 5, 5, 5)
    rates = [ended.rate(step) for step in range(ended.steps)]
    assert rates[:51] == [schedule(step, 100) for step in range(51)]
    assert all(one > two for one, two in pairwise(rates[51:]))
    assert rates[51] == pytest.approx(schedule(51, 100)) and rates[-1] < 0.15


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
    alone = list(batches(course(), 0, sampler_of, NAMED, ROWS, accumulate=4))
    ranks = [
        list(batches(course(), 0, sampler_of, NAMED, ROWS, rank=rank, processes=2, accumulate=2))
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


def test_measuring_takes_about_a_twentieth_and_is_done_once_at_least():
    assert measured_every(2000, 128, 4, 34) == 100  # twenty times
    every = measured_every(150, 54, 4, 8)
    assert every * 8 * 6 * 0.05 == pytest.approx(54 * 5, rel=0.05)  # passes of a step, of measuring
    assert measured_every(4, 6, 3, 14) == 4
