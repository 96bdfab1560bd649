import pytest

from twcli.training.defaults import (
    Length,
    adaptation,
    batch_tokens,
    default_steps,
    duration,
    peak_learning_rate,
)


def test_large_models_are_adapted_and_small_ones_trained_in_full():
    assert [adaptation(n) for n in (127_000, 50_000_000, 135_000_000)] == ["full", "full", "lora"]


def test_the_rate_falls_with_the_width():
    assert peak_learning_rate("full", 64, 300) == peak_learning_rate("full", 16, 1000) == 2e-3
    assert peak_learning_rate("full", 128, 1000) == 1e-3
    assert peak_learning_rate("lora", 576, 150) == peak_learning_rate("lora", 576, 2000) == 2e-3
    assert peak_learning_rate("lora", 4096, 150) == pytest.approx(2.8e-4, rel=0.01)


def test_the_rate_of_all_weights_falls_with_the_steps():
    assert peak_learning_rate("full", 64, 2000) == 1e-3
    assert peak_learning_rate("full", 128, 4000) == 2.5e-4


def test_a_batch_holds_a_few_rows_of_any_length():
    assert (batch_tokens("full", 60), batch_tokens("lora", 60)) == (2048, 600)
    assert batch_tokens("lora", 1000) == 8000


@pytest.mark.parametrize(
    ("adapt", "steps_a_pass", "steps"),
    [
        ("full", 1170, 2000),
        ("full", 500, 1500),
        ("full", 6.5, 1000),
        ("lora", 22, 150),
        ("lora", 60, 180),
        ("lora", 1e6, 2000),
    ],
)
def test_small_data_are_read_more_often_and_large_ones_in_part(adapt, steps_a_pass, steps):
    assert default_steps(adapt, steps_a_pass) == steps


def test_lengths_and_durations_read_like_sentences():
    assert str(Length(2000, 305.4, 168)) == "2,000 steps = 305 passes over 168 records"
    assert str(Length(150, 2.5, 540)) == "150 steps = 2.5 passes over 540 records"
    seconds = [40, 720, 12_000, 7200, 187_200, 172_800]
    spoken = ["40 s", "12 min", "3 h 20 min", "2 h", "2 d 4 h", "2 d"]
    assert [duration(number) for number in seconds] == spoken
