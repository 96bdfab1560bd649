import pytest

from twcli.config.train import TrainConfig
from twcli.errors import UserError

NEEDED = {"model": "M", "data": "D", "baseline": "B", "latents": 4, "out": "R"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latents": 1}, "--latents: 1 is too small; give at least 2"),
        ({"beta": 0.0}, "--beta: 0.0 is too small; give more than 0.0"),
        ({"beta": float("nan")}, "--beta: nan is not a finite number"),
        ({"posterior": "none"}, "--posterior: 'none' is not one of shared, separate, exact"),
        ({"steps": 3, "epochs": 1}, "--steps and --epochs exclude each other"),
        ({"steps": True}, "--steps: True is not of type int"),
        ({"lr": "fast"}, "--lr: 'fast' is not of type float"),
        ({"uniform_weight": 0.0, "token_weight": 0.0}, "both 0"),
        ({"baseline": None}, "--baseline is required"),
        ({"baseline_policy": "warm"}, "--baseline-policy: 'warm' is not one of frozen, dynamic"),
        (
            {"ablation": "token-baseline", "weighting": "uniform"},
            "--ablation token-baseline: .* give --weighting token or mixed",
        ),
        ({"latent_tokens": 0}, "--latent-tokens: 0 is too small"),
        ({"history_dropout": 1.0}, "--history-dropout: 1.0 is too large"),
        ({"betta": 1.0}, "here: unknown key 'betta'"),
        ({"baseline-precision": "fp32"}, "here: --baseline-precision is gone: .* leave it out"),
        ({"x" * 10_000: 1.0}, "here: unknown key 'x{100}'"),
        ({"steps": 10**400}, "--steps: the number is too large"),
        ({"beta": 10**400}, "--beta: the number is too large"),
        ({"seed": [16**5000]}, "--seed: a huge list is not of type int"),
        ({"out": "a\0b"}, "--out holds a NUL"),
        ({"out": "a\ud800"}, "--out holds half of a surrogate pair"),
        ({"model": None}, "--model: is empty; give a value or leave the key out"),
        ({"tau": None}, "--tau: is empty; give a value or leave the key out"),
        ({"latents": None, "warm_start": "none"}, "--warm-start is none; give a number"),
        ({"latents": "auto", "names": "N"}, "--latents auto: --names says how many"),
        ({"latents": "many"}, "--latents: 'many' is not"),
        ({"names": "N", "warm_start": "none"}, "--names: is a warm start, and --warm-start is non"),
        (
            {"latents": "auto", "warm_start": "none"},
            "--latents auto, the default: counts the strategies that the naming finds",
        ),
        ({"hold": 1.5}, "--hold is gone: names are held until the generator reads"),
        ({"trust": 4}, "--trust is gone: names are held"),
        ({"release": 0.1}, "--release is gone: the posterior is taught"),
        ({"prune": 0.6}, "--prune: 0.6 is too large"),
        ({"lr": "1e999"}, "--lr: inf is not a finite number"),
        ({"model": True}, "--model: True is not of type str"),
        (
            {"execution": "tree", "gradient_checkpointing": True},
            "--execution tree: is not available with --gradient-checkpointing",
        ),
        (
            {"execution": "branches", "compile": True},
            "--execution branches: is not available with --compile; leave one out",
        ),
    ],
)
def test_bad_values_name_the_flag(values, message):
    with pytest.raises(UserError, match=message):
        TrainConfig.from_mapping({**NEEDED, **values}, "here")


def test_missing_option_is_named():
    with pytest.raises(UserError, match="--baseline is required"):
        TrainConfig.from_mapping(
            {k: v for k, v in NEEDED.items() if k != "baseline"}, "command line"
        )


def test_a_dynamic_baseline_needs_no_file():
    without = {k: v for k, v in NEEDED.items() if k != "baseline"}
    assert TrainConfig(**without, baseline_policy="dynamic").baseline is None


def test_whether_b_t_weights_anything():
    assert TrainConfig(**NEEDED).uses_weights
    assert not TrainConfig(**NEEDED, weighting="uniform").uses_weights
    assert not TrainConfig(**NEEDED, ablation="token-baseline").uses_weights


def test_names_say_how_many_latents_there_are():
    given = TrainConfig(**{**NEEDED, "latents": None}, names="N")
    assert (given.latents, given.names) == (None, "N")
    assert TrainConfig(**NEEDED, names="N").latents == 4


def test_without_a_number_or_names_the_naming_chooses_it():
    left_open = {name: value for name, value in NEEDED.items() if name != "latents"}
    assert TrainConfig(**left_open).latents == "auto"


def test_what_follows_from_model_and_data_may_be_left_open():
    left_open = TrainConfig(**NEEDED)
    assert left_open.adapt is left_open.batch_tokens is left_open.lr is left_open.steps is None
    assert TrainConfig.from_mapping({**NEEDED, "adapt": None}, "here").adapt is None


def test_several_seeds():
    assert TrainConfig(**NEEDED, seed=3).each_seed() == [3]
    assert TrainConfig(**NEEDED, seeds="0, 1,2").each_seed() == [0, 1, 2]
    for wrong, says in (
        ("0,,1", "is no list of numbers"),
        ("1-3", "is no list of numbers"),
        ("", "is no list of numbers"),
        ("4,4", "each once"),
        ("2147483648", "below 2147483648"),
    ):
        with pytest.raises(UserError, match=f"--seeds: .*{says}"):
            TrainConfig(**NEEDED, seeds=wrong)


def test_term_weights():
    assert TrainConfig(**NEEDED, weighting="token").term_weights() == (0.0, 1.0)
    assert TrainConfig(**NEEDED, weighting="uniform").term_weights() == (1.0, 0.0)
    assert TrainConfig(**NEEDED, token_weight=3.0).term_weights() == (1.0, 3.0)
