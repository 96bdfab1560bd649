"""A model, its data and a cache that belongs to both."""

import numpy as np
import pytest

from tests.commands.test_precompute import cached
from tests.conftest import make_model, make_records, make_tokenizer, write_jsonl
from twcli.errors import UserError
from twcli.models.inputs import open_inputs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cache_of_either_precision_belongs_to_its_model(model_dir, tmp_path, precision):
    nll, _ = cached(model_dir, tmp_path, precision=precision)
    inputs = open_inputs(model_dir, str(tmp_path / "d.jsonl"))
    cache, fingerprint = inputs.open_cache(str(tmp_path / "b.h5"))
    assert fingerprint["dtype"] == precision
    assert np.array_equal(cache.read(np.arange(cache.rows))[0], nll)
    assert inputs.model.dtype.is_floating_point and inputs.precision == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cache_of_another_model_is_refused_in_either_precision(model_dir, tmp_path, precision):
    cached(model_dir, tmp_path, precision=precision)
    other = tmp_path / "other"
    make_model(seed=5).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    inputs = open_inputs(str(other), str(tmp_path / "d.jsonl"))
    with pytest.raises(UserError, match="another weights"):
        inputs.open_cache(str(tmp_path / "b.h5"))


def test_a_limit_beyond_the_context_and_a_row_beyond_the_limit_are_refused(model_dir, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", make_records(3, 2))
    with pytest.raises(UserError, match="--max-length 100000: the model's context holds"):
        open_inputs(model_dir, data, max_length=100000)
    with pytest.raises(UserError, match=r"d\.jsonl:\d: .* more than the limit of 8"):
        open_inputs(model_dir, data, max_length=8)
