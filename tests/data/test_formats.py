from twcli.config.inputs import FORMATS
from twcli.data import formats
from twcli.data.formats import NAMES


def test_the_options_are_the_forms():
    assert FORMATS == NAMES


def test_a_form_is_one_that_all_first_records_have():
    records = [
        ("f:1", {"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}),
        ("f:2", {"instruction": "c", "output": "d"}),
    ]
    assert formats.form_of(records[:1]).name == "prompt-completion"
    assert formats.form_of(records).name == "alpaca"
