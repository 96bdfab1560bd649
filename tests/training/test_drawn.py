"""Completions of the frozen model itself, where the records are known by heart."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import encode, make_model, make_records
from twcli.kernels.packing import PLAIN
from twcli.training.drawn import LEAST, Drawn, denied, draw
from twcli.training.retention import Retention, retention_lines

CONFIG = SimpleNamespace(seed=0, resolved_batch_tokens=200, max_length=None, latent_tokens=1)


@contextmanager
def no_bar(_label, _total):
    yield lambda _count: None


@pytest.fixture
def model():
    return make_model(initializer=1.0)


@pytest.fixture
def drawn(model, encoder):
    encoded = encode(encoder, make_records(40, 2))
    return draw(model, encoder, encoded, np.arange(80), CONFIG, no_bar)


def test_rows_with_other_answers_are_those_of_the_text(encoder):
    records = make_records(4, 3)
    encoded = encode(encoder, records)
    rows = [5, 0, 5]
    other = [[*encoded.y_ids(row), encoder.y_close] for row in (1, 2, 7)]
    answered = encoded.answered(rows, other)
    texts = [{**records[row], "y": records[y]["y"]} for row, y in zip(rows, (1, 2, 7), strict=True)]
    expected = encode(encoder, texts)
    for name in ("ids", "offsets", "prompt_lengths", "target_lengths", "x_starts", "x_lengths"):
        assert (getattr(answered, name) == getattr(expected, name)).all(), name
    assert answered.prompt_index[0] == answered.prompt_index[2] != answered.prompt_index[1]


def test_likelihoods_are_those_of_a_plain_pass_and_draws_repeat(model, encoder, drawn):
    assert LEAST <= len(drawn.encoded) <= 80
    for row in range(0, len(drawn.encoded), 9):
        first, last = drawn.encoded.offsets[row : row + 2]
        ids = torch.from_numpy(drawn.encoded.ids[first : last - 1].astype(np.int64))[
            None
        ]  # no <eos>
        target = int(drawn.encoded.target_lengths[row])
        with torch.no_grad():
            log_p = model(ids).logits[0, :-1].log_softmax(-1)
        nll = -log_p.gather(1, ids[0, 1:, None])[-target:].sum()
        assert drawn.frozen_R[row] == pytest.approx(float(nll), abs=1e-4)
        assert ids[0, -1] == encoder.y_close
        assert encoder.y_close not in ids[0, -target:-1]
    again = draw(
        model, encoder, encode(encoder, make_records(40, 2)), np.arange(80), CONFIG, no_bar
    )
    assert (again.encoded.ids == drawn.encoded.ids).all()


@pytest.mark.parametrize(("complete", "found"), [(LEAST, True), (LEAST - 1, False)])
def test_completions_that_were_cut_off_do_not_count(model, encoder, monkeypatch, complete, found):
    encoded = encode(encoder, make_records(40, 2))

    def generated(_model, _encoder, prompts, **_settings):
        ended = [place < complete for place in range(len(prompts))]
        return [[9, 9, encoder.ends[-1]] if end else [9, 9, 9] for end in ended], ended

    monkeypatch.setattr("twcli.training.drawn.generate_ids", generated)
    drawn = draw(model, encoder, encoded, np.arange(80), CONFIG, no_bar)
    assert (drawn is not None) == found
    assert drawn is None or len(drawn.encoded) == complete


class Run:
    """A run whose K branches give a completion these likelihoods each."""

    execution, training, latents = PLAIN, False, 2

    def __init__(self, drawn: Drawn, more_RK):
        self.nll_RK = torch.from_numpy(drawn.frozen_R[:, None] + more_RK)

    def eval(self):
        pass

    def train(self, _mode):
        pass

    def score_branches(self, batch):
        nll_BK = self.nll_RK[batch.rows_B]
        return nll_BK[:, :, None], torch.full_like(nll_BK, np.log(0.5))


def test_what_is_kept_and_what_is_lost(encoder, drawn):
    accelerator = SimpleNamespace(device="cpu", autocast=lambda: no_bar("", 0))
    of = np.arange(len(drawn.frozen_R)) % 2
    own = np.eye(2)[1 - of] * 40  # the other latent never writes it
    noise = np.random.default_rng(0).normal(0, 0.3, own.shape)
    # each latent is as likely as the other before: log 2 of what the strategy costs
    as_before = own - np.log(2) + noise - noise.mean()

    def kept(more_RK, below):
        return denied(drawn, below, Run(drawn, more_RK), encoder, CONFIG, accelerator)

    assert kept(as_before, {0: -0.7, 1: -0.7}) == {0, 1}
    lost = as_before + 3.0 * (of == 1)[:, None]
    assert kept(lost, {0: -0.7, 1: -0.7}) == {0}
    assert kept(lost, {1: -0.7}) == kept(as_before, {}) == frozenset()
    assert denied(None, {0: -0.7}, None, encoder, CONFIG, accelerator) == frozenset()
    # a handful of completions that differ much say nothing
    of_few = np.where(np.arange(len(of)) < 3, 1, 0)
    rare = np.eye(2)[1 - of_few] * 40 + np.random.default_rng(1).normal(0, 3, own.shape)
    assert 1 not in kept(rare, {1: -0.7})


def test_a_prompt_leaves_room_in_the_context(encoder, monkeypatch):
    encoded = encode(encoder, make_records(40, 2))
    asked = []

    def generated(_model, _encoder, prompts, *, max_new_tokens, **_settings):
        asked.extend(zip(map(len, prompts), max_new_tokens.tolist(), strict=True))
        return [[9, encoder.ends[-1]] for _ in prompts], [True] * len(prompts)

    monkeypatch.setattr("twcli.training.drawn.generate_ids", generated)
    short = make_model(positions=22)
    assert draw(short, encoder, encoded, np.arange(80), CONFIG, no_bar) is not None
    assert max(length + room for length, room in asked) <= 22 - 3
    assert min(room for _, room in asked) >= 1


def test_records_that_are_known_by_heart_are_said_to_be():
    below = Retention(0, 50, 10.0, 10.2, -0.2, (-0.3, -0.1), -0.2, (-0.3, -0.1))
    (line,) = retention_lines([below], kept={0})
    assert "has memorised the records" in line and "(-0.20 nats an example)" in line
    (line,) = retention_lines([below])
    assert line.startswith("retention: z0 is below")
