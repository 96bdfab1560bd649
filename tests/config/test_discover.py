import pytest

from twcli.config.discover import DiscoverConfig
from twcli.errors import UserError

DISCOVER = {"model": "M", "data": "D", "out": "O"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latents": 1}, "--latents: 1 is too small; give at least 2"),
        ({"latents": 1025}, "--latents: 1025 is too large"),
        ({"latents": "all"}, "--latents: 'all' is not"),
        ({"seed": -1}, "--seed: -1 is too small"),
        ({"out": "a\0b"}, "--out holds a NUL"),
        ({"model": None}, "--model: is empty"),
        ({"baseline": "B"}, "unknown key 'baseline'"),
    ],
)
def test_bad_values_of_discover_name_the_flag(values, message):
    with pytest.raises(UserError, match=message):
        DiscoverConfig.from_mapping({**DISCOVER, **values}, "here")


def test_the_number_of_latents_is_looked_for_unless_it_is_given():
    assert DiscoverConfig(**DISCOVER).latents == "auto"
    assert DiscoverConfig.from_mapping({**DISCOVER, "latents": 3}, "here").latents == 3
