import os
import re
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import encode, make_model, make_records, write_jsonl
from tests.models.test_baseline import reference
from twcli.commands.inspection import inspect
from twcli.commands.precompute import precompute
from twcli.config.precompute import PrecomputeConfig
from twcli.discovery import features
from twcli.errors import Interrupted, UserError
from twcli.models import baseline
from twcli.storage.beside import features_path
from twcli.storage.cache import Cache
from twcli.storage.cache_format import write_file

RECORDS = make_records(12, 3)
LONG = [{"x": " ".join(["w1"] * 60), "y": y} for y in ("w2", "w3 w4", "w5 w6")]


@contextmanager
def no_bar(_label, _total, _lines=True):
    yield lambda _count: None


def cached(model_dir, folder, said=lambda _line: None, records=RECORDS, **changes):
    """All of /nll of a cache made by the command."""
    config = PrecomputeConfig(
        model=model_dir,
        data=write_jsonl(folder / "d.jsonl", records),
        out=str(folder / "b.h5"),
        device="cpu",
        overwrite=True,
        **changes,
    )
    precompute(config, said, no_bar)
    with Cache(folder / "b.h5") as cache:
        assert not cache.verify()
        return cache.read(np.arange(len(records)))


@pytest.mark.parametrize("rows_a_batch", [1, 3, 16])
def test_every_value_in_the_file_equals_plain_transformers(
    model_dir, encoder, tmp_path, rows_a_batch
):
    encoded = encode(encoder, RECORDS)
    nll, lengths = cached(
        model_dir, tmp_path, batch_tokens=rows_a_batch * int(encoded.lengths.max())
    )
    expected = reference(make_model(), encoded)
    assert lengths.tolist() == encoded.target_lengths.tolist()
    assert np.abs(nll - expected).max() <= 1e-5


def test_shards_do_not_show_and_the_global_rng_is_left_alone(model_dir, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = cached(model_dir, tmp_path), cached(model_dir, tmp_path, shard_rows=5)
    assert torch.equal(before, torch.get_rng_state())
    assert np.abs(one[0] - other[0]).max() <= 1e-5


def test_the_error_of_bf16_is_measured_and_reported(model_dir, tmp_path):
    said = []
    exact, rounded = (
        cached(model_dir, tmp_path, said=said.append, precision=precision)[0]
        for precision in ("fp32", "bf16")
    )
    # all rows are compared: there are fewer than 16
    (line,) = (line for line in said if "from float32" in line)
    error = np.abs(rounded - exact)
    told = [float(figure) for figure in re.findall(r"\d\.\de-\d\d", line)]
    assert (
        told == pytest.approx([error.mean(), error.max()], rel=0.1) and 0 < told[0] < told[1] < 0.5
    )


def test_with_overwrite_an_interrupted_call_resumes_and_replaces_at_the_end(
    model_dir, tmp_path, monkeypatch
):
    whole, _ = cached(model_dir, tmp_path, shard_rows=5)
    features_path(tmp_path / "b.h5").unlink()  # or b_t would be read by itself, in other batches
    old = (tmp_path / "b.h5").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("twcli.signals.pending", lambda: True)
        with pytest.raises(
            Interrupted,
            match=r"^interrupted; finished shards are kept; run the same command again to resume$",
        ):
            cached(model_dir, tmp_path, shard_rows=5)
    assert (tmp_path / "b.h5").read_bytes() == old
    said = []
    assert np.array_equal(cached(model_dir, tmp_path, said.append, shard_rows=5)[0], whole)
    assert "resuming: 5 of 36 rows are done" in said


def test_with_overwrite_the_old_cache_is_not_read(model_dir, tmp_path, monkeypatch):
    cached(model_dir, tmp_path)
    monkeypatch.setattr("twcli.commands.precompute.CacheWriter.already_complete", None)
    cached(model_dir, tmp_path)


def test_the_bar_counts_what_all_processes_score(model_dir, tmp_path, monkeypatch):
    counts, totals = [], []

    @contextmanager
    def bar(_label, total):
        totals.append(total)
        yield counts.append

    first = SimpleNamespace(
        is_main_process=True, num_processes=2, process_index=0, device=torch.device("cpu")
    )
    monkeypatch.setattr("twcli.models.runtime.accelerator_for", lambda *_: first)
    records = [{"x": "w1", "y": "w2 w3"}] * 12  # shards of one size
    config = PrecomputeConfig(
        model=model_dir,
        data=write_jsonl(tmp_path / "d.jsonl", records),
        out=str(tmp_path / "b.h5"),
        shard_rows=4,
    )
    # those of the process that there is not
    with pytest.raises(ValueError, match="rows 4 to 7 are missing"):
        precompute(config, lambda _line: None, bar)
    assert [sum(counts)] == totals


def made_from_a_file(model_dir, folder):
    """Where a frame, and a cache that was made in it, lie."""
    template = folder / "frame.txt"
    template.write_text("<x>{x}</x>{z}<y>{y}</y>")
    cached(model_dir, folder, template=str(template))
    return str(template), {"verify": True, "model": model_dir, "data": str(folder / "d.jsonl")}


def test_a_cache_in_a_frame_from_a_file_is_compared_with_that_file(model_dir, tmp_path):
    template, asked = made_from_a_file(model_dir, tmp_path)
    found = inspect(str(tmp_path / "b.h5"), **asked, template=template)
    assert found["problems"] == [] and len(found["texts"]) == 3
    with pytest.raises(
        UserError,
        match=r"b\.h5: was made with --template FILE; give the same --template to compare it",
    ):
        inspect(str(tmp_path / "b.h5"), **asked)
    assert (
        "another template"
        in inspect(str(tmp_path / "b.h5"), **asked, template="tags")["problems"][0]
    )
    with pytest.raises(UserError, match="--template: needs --model and --data"):
        inspect(str(tmp_path / "b.h5"), verify=True, template=template)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_file_of_right_checksums_and_wrong_values_is_refused(tmp_path, value):
    shard = np.array([0.5, value], "<f4").tobytes()
    handle = os.open(tmp_path / "b.h5", os.O_RDWR | os.O_CREAT)
    write_file(handle, b"{}", np.array([0, 2]), np.zeros((1, 16), np.uint8), [shard])
    with pytest.raises(UserError, match="values of /nll are negative or not finite"):
        inspect(str(tmp_path / "b.h5"), verify=False)
    assert inspect(str(tmp_path / "b.h5"), verify=True)["problems"] == [
        "1 values of /nll are negative or not finite"
    ]


@pytest.mark.parametrize("execution", ["plain", "auto"])
def test_a_prompt_is_read_once_unless_it_is_to_be_read_plainly(
    model_dir, encoder, tmp_path, execution, monkeypatch
):
    rows_read = {False: 0, True: 0}

    def watched(read, *inputs, varlen, **how):
        rows_read[varlen] += len(inputs[-1])
        return read(*inputs, varlen=varlen, **how)

    monkeypatch.setattr(baseline, "_score", partial(watched, baseline._score))
    monkeypatch.setattr(features, "_pooled", partial(watched, features._pooled))
    nll, _ = cached(model_dir, tmp_path, records=LONG, execution=execution)
    assert np.abs(nll - reference(make_model(), encode(encoder, LONG))).max() <= 1e-5
    assert rows_read[True] == (0 if execution == "plain" else 2 * len(LONG))  # once for the check
