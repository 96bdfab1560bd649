from twcli.config.evaluate import EvalConfig


def test_eval_defaults_are_valid():
    assert EvalConfig(run="R", data="D").bootstrap == 1000
