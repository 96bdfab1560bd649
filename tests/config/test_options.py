import pytest

from twcli.config.options import read_yaml, to_yaml
from twcli.config.train import TrainConfig
from twcli.errors import UserError

NEEDED = {"model": "M", "data": "D", "baseline": "B", "latents": 4, "out": "R"}


def test_yaml_round_trip(tmp_path):
    config = TrainConfig(**NEEDED, beta=0.3, epochs=2)
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert TrainConfig.from_mapping(read_yaml(str(tmp_path / "c.yaml")), "c.yaml") == config


def test_dashes_and_underscores_are_one():
    assert TrainConfig.from_mapping({**NEEDED, "batch-tokens": 7}, "f").batch_tokens == 7


@pytest.mark.parametrize(
    "text", ["a: [", "- 1", "a: !!python/object/apply:os.system ['true']", "\x00"]
)
def test_yaml_that_is_not_a_plain_mapping_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml"):
        read_yaml(str(tmp_path / "c.yaml"))


def test_a_file_takes_what_a_flag_takes(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 1e-3\nbeta: 2\nout: 7\nsteps:\n")
    config = TrainConfig.from_mapping({**NEEDED, **read_yaml(str(tmp_path / "c.yaml"))}, "c.yaml")
    assert (config.lr, config.beta, config.out, config.steps) == (0.001, 2, "7", None)
    (tmp_path / "c.yaml").write_text("<<: {beta: 2, seed: 3}\nbeta: 1\n")
    # a merge is no key given twice
    assert read_yaml(str(tmp_path / "c.yaml")) == {"beta": 1, "seed": 3}


@pytest.mark.parametrize(
    "text", ["seed: 1\nbeta: 1\nbeta: 2\n", "seed: 1\nbatch-tokens: 7\nbatch_tokens: 8\n"]
)
def test_a_key_given_twice_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(
        UserError, match=r"c\.yaml:[23]: '(beta|batch_tokens)' is given twice; leave one out"
    ):
        read_yaml(str(tmp_path / "c.yaml"))


def test_a_bomb_of_aliases_is_one_short_line(tmp_path):
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9 if n else ['lol'])}]" for n in range(12)]
    (tmp_path / "c.yaml").write_text(
        "seed: [{}]\n".format(
            ", ".join(["&l0 [lol]", *(level.split(": ")[1] for level in levels[1:])])
        )
    )
    with pytest.raises(UserError) as caught:
        TrainConfig.from_mapping({**NEEDED, **read_yaml(str(tmp_path / "c.yaml"))}, "c.yaml")
    assert len(str(caught.value)) < 300


def test_a_large_file_is_no_configuration(tmp_path):
    with (tmp_path / "c.yaml").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(UserError, match="larger than 256 KiB"):
        read_yaml(str(tmp_path / "c.yaml"))
