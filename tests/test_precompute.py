import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import encode, make_model, make_records, write_jsonl
from test_baseline import reference

from twcli import baseline
from twcli.cache import Cache
from twcli.config import PrecomputeConfig
from twcli.precompute import precompute

RECORDS = make_records(12, 3)
LONG = [{"x": " ".join(["w1"] * 60), "y": y} for y in ("w2", "w3 w4", "w5 w6")]


@contextmanager
def no_bar(_label, _total, _lines=True):
    yield lambda _count: None


def cached(model_dir, folder, said=lambda _line: None, records=RECORDS, **changes):
    """All of /nll of a cache made by the command."""
    config = PrecomputeConfig(model=model_dir, data=write_jsonl(folder / "d.jsonl", records), out=str(folder / "b.h5"), device="cpu",
                              overwrite=True, **changes)
    precompute(config, said, no_bar)
    with Cache(folder / "b.h5") as cache:
        assert not cache.verify()
        return cache.read(np.arange(len(records)))


@pytest.mark.parametrize("rows_a_batch", [1, 3, 16])
def test_every_value_in_the_file_equals_plain_transformers(model_dir, template, tmp_path, rows_a_batch):
    encoded = encode(template, RECORDS)
    nll, lengths = cached(model_dir, tmp_path, batch_tokens=rows_a_batch * int(encoded.lengths.max()))
    expected = reference(make_model(), encoded)
    assert lengths.tolist() == encoded.target_lengths.tolist()
    assert np.abs(nll - expected).max() <= 1e-5


def test_shards_do_not_show_and_the_global_rng_is_left_alone(model_dir, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = cached(model_dir, tmp_path), cached(model_dir, tmp_path, shard_rows=5)
    assert torch.equal(before, torch.get_rng_state())
    assert np.abs(one[0] - other[0]).max() <= 1e-5


def test_the_error_of_bf16_is_measured_and_told(model_dir, tmp_path):
    said = []
    exact, rounded = (cached(model_dir, tmp_path, said=said.append, precision=precision)[0] for precision in ("fp32", "bf16"))
    line, = (line for line in said if "from float32" in line)  # all rows are compared: there are fewer than 16
    error = np.abs(rounded - exact)
    told = [float(figure) for figure in re.findall(r"\d\.\de-\d\d", line)]
    assert told == pytest.approx([error.mean(), error.max()], rel=0.1) and 0 < told[0] < told[1] < 0.5


@pytest.mark.parametrize("execution", ["plain", "auto"])
def test_a_prompt_is_read_once_unless_it_is_to_be_read_plainly(model_dir, template, tmp_path, execution, monkeypatch):
    read, rows_read = baseline._read, {False: 0, True: 0}

    def watched(*inputs, varlen):
        rows_read[varlen] += len(inputs[-1])
        return read(*inputs, varlen=varlen)

    monkeypatch.setattr(baseline, "_read", watched)
    nll, _ = cached(model_dir, tmp_path, records=LONG, execution=execution)
    assert np.abs(nll - reference(make_model(), encode(template, LONG))).max() <= 1e-5
    assert rows_read[True] == (0 if execution == "plain" else 2 * len(LONG))  # once for the check
