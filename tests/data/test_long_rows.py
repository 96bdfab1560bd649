"""Rows that are too long, by hand: <bos> <x> x </x> <y> y </y> <eos> and three latent tokens."""

import numpy as np
import pytest

from tests.conftest import make_tokenizer
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.errors import UserError

AROUND = 9  # tokens that come to those of x and y


@pytest.fixture
def encoder():
    return ExampleEncoder(make_tokenizer(), "model")


EXAMPLES = [
    Example("w1", "w2", where="f:1"),
    Example("w1 w2 w3 w4 w5", "w2", where="f:2"),
    Example("w1", "w2 w3 w4 w5 w6", where="f:3"),
    Example("w1", "w3", where="f:4"),
]


def test_they_stop_the_call_and_are_counted(encoder):
    with pytest.raises(UserError, match=r"^f:2: 15 tokens with the latent section ") as caught:
        encoder.encode(EXAMPLES, max_length=AROUND + 4, source="f")
    assert "are more than the limit of 13; so are 2 of 4 rows, of which this is" in str(
        caught.value
    )
    assert "--too-long skip or truncate-left" in str(caught.value)
    with pytest.raises(UserError, match="limit of 13; of 2 rows only this one is too long; give"):
        encoder.encode(EXAMPLES[:2], max_length=AROUND + 4, source="f")


def test_they_are_left_out(encoder):
    encoded = encoder.encode(EXAMPLES, max_length=AROUND + 4, source="f", too_long="skip")
    alone = encoder.encode([EXAMPLES[0], EXAMPLES[3]], max_length=AROUND + 4, source="f")
    assert encoded.ids.tolist() == alone.ids.tolist()
    assert encoded.row_hash.tolist() == alone.row_hash.tolist()
    assert encoded.prompt_index.tolist() == [0, 0]
    assert [encoded.number(row) for row in range(2)] == [0, 3]
    assert encoded.too_long == {"skip": 2} and alone.too_long == {}
    assert encoded.notes == (
        "too long: of 4 rows 2 are left out; the limit is 13 tokens, the longest row has 15 (f:2)",
    )
    assert alone.row_numbers is None and alone.number(1) == 1


def test_they_lose_the_beginning_of_x(encoder):
    encoded = encoder.encode(EXAMPLES, max_length=AROUND + 4, source="f", too_long="truncate-left")
    expected = [EXAMPLES[0], Example("w3 w4 w5", "w2"), EXAMPLES[3]]
    same = encoder.encode(expected, max_length=AROUND + 4, source="f")
    assert encoded.ids.tolist() == same.ids.tolist()
    assert np.array_equal(encoded.row_hash, same.row_hash)
    assert encoded.x_lengths.tolist() == [1, 3, 1]
    assert encoded.too_long == {"skip": 1, "truncate-left": 1}
    assert encoded.row_numbers.tolist() == [0, 1, 3]
    assert "1 lose the beginning of x, 1 are left out: their y alone" in encoded.notes[0]


def test_nothing_is_left(encoder):
    with pytest.raises(UserError, match="so no row is left; raise --max-length"):
        encoder.encode(EXAMPLES[1:3], max_length=AROUND, source="f", too_long="skip")


def test_blocks_without_a_row(encoder, monkeypatch):
    monkeypatch.setattr("twcli.data.encoder.ENCODE_BLOCK", 1)
    encoded = encoder.encode(EXAMPLES, max_length=AROUND + 4, source="f", too_long="skip")
    assert encoded.row_numbers.tolist() == [0, 3] and len(encoded.offsets) == 3
