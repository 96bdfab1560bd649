import numpy as np
import pytest

from twcli.batches import Plan
from twcli.stages import Stage, batches, stages_of

LENGTHS, PROMPTS = np.full(60, 10), np.repeat(np.arange(20), 3)
HELD = np.arange(30)


def plan_of(stage, rows):
    return Plan(LENGTHS, PROMPTS, batch_tokens=60, seed=[*stage.encode()], rows=rows)


def run(step=0, rank=0, processes=1):
    return list(batches(STAGES, step, plan_of, HELD, rank=rank, processes=processes))


STAGES = stages_of(20, hold=0.25, refine=0.2, release=0.1, warm=True)


def test_stages_by_hand():
    assert STAGES == [Stage("hold", 0, 5), Stage("refine", 5, 9), Stage("settle", 9, 18), Stage("free", 18, 20)]
    assert stages_of(20, hold=0.25, refine=0.2, release=0.1, warm=False) == [Stage("free", 0, 20)]
    assert stages_of(1, hold=0.15, refine=0.3, release=0.0, warm=True) == [Stage("settle", 0, 1)]
    assert stages_of(10, hold=1.0, refine=0.0, release=0.0, warm=True) == [Stage("hold", 0, 10)]


def test_each_stage_reads_its_own_rows():
    steps = run()
    assert [stage.name for stage, _ in steps] == ["hold"] * 5 + ["refine"] * 4 + ["settle"] * 9 + ["free"] * 2
    of = {name: np.unique(np.concatenate([rows for stage, rows in steps if stage.name == name])) for name in ("hold", "refine", "settle")}
    assert of["hold"].tolist() == HELD.tolist()
    assert of["settle"].tolist() == of["refine"].tolist() and len(of["refine"]) == 24


def test_without_refinement_the_held_rows_settle():
    stages = stages_of(12, hold=0.1, refine=0.0, release=0.0, warm=True)
    rows = np.concatenate([rows for stage, rows in batches(stages, 0, plan_of, HELD) if stage.name == "settle"])
    assert set(rows) == set(HELD)


@pytest.mark.parametrize("step", [1, 5, 7, 9, 12, 19])
def test_a_resumed_run_repeats_the_rest(step):
    whole, rest = run()[step:], run(step)
    assert len(whole) == len(rest) and all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(whole, rest, strict=True))


def test_processes_read_disjoint_rows():
    one, two = run(rank=0, processes=2), run(rank=1, processes=2)
    assert all(not set(a[1]) & set(b[1]) for a, b in zip(one[:2], two[:2], strict=True))
    assert [s.name for s, _ in one] == [s.name for s, _ in two]
