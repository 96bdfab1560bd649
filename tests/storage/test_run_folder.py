"""The run folder believes only what it wrote, and loses nothing that it said is stored."""

import errno
import json
import os
from datetime import date

import accelerate.tracking
import pytest
import torch
from safetensors import SafetensorError

from tests.commands.test_precompute import no_bar
from tests.conftest import make_records, write_jsonl
from twcli.config.train import TrainConfig
from twcli.errors import Interrupted, UserError, WorkFailed
from twcli.models.card import model_card
from twcli.storage.run_folder import RunFolder
from twcli.training import trainer
from twcli.training.setup import prepare

MADE = {"weights": "aa", "template": {"ids": [1, 2]}, "settings": {}}


def settings(out, **changes):
    return TrainConfig(
        **{"model": "M", "data": "D", "baseline": "B", "latents": 3, "out": str(out), **changes}
    )


@pytest.fixture
def run(tmp_path):
    """A run of four steps with checkpoints at 2 and 4."""
    config = settings(tmp_path / "run")
    run = RunFolder(config.out)
    run.path.mkdir()
    run.begin(config)
    run.cut_back(0)
    train(run, 1, 4)
    return run


def made(run):
    return MADE | {"settings": settings(run.path).identity()}


def tensors(step):
    return {"model.weight": torch.full((3,), float(step)), "latents": torch.arange(step)}


def test_a_run_with_an_option_that_is_gone_opens_and_resumes(run):
    run.config_file.write_text(run.config_file.read_text() + "baseline_precision: fp32\n")
    assert run.read_config() == settings(run.path)
    run.check(settings(run.path))
    old = made(run)
    run.save_checkpoint(
        6, tensors(6), 2, {**old, "settings": {**old["settings"], "baseline_precision": "fp32"}}
    )
    assert run.checkpoints.newest(old, TrainConfig.retired)[0] == 6
    assert run.problems() == []
    with pytest.raises(UserError, match=r"another settings\.baseline_precision"):
        run.checkpoints.newest(old)


def train(run, first, last, keep=2):
    for step in range(first, last + 1):
        run.append_metrics({"step": step, "loss": 1 / step})
        if step % 2 == 0:
            run.save_checkpoint(step, tensors(step), keep, made(run))


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_damaged_one_does_not_push_out_a_good_one(run):
    flip(run.checkpoints.last / "state.safetensors", 50)
    assert [line for line in run.problems() if "step-00000004: damaged" in line]
    again = RunFolder(run.path)
    again.cut_back(again.checkpoints.newest(made(run))[0])
    assert [m["step"] for m in again.read_metrics()] == [1, 2]
    again.append_metrics({"step": 3, "loss": 0.5})
    again.save_checkpoint(3, tensors(3), 1, made(run))
    assert again.checkpoints.newest(made(run))[0] == 3
    assert again.problems() == []


# Metrics


@pytest.mark.parametrize("torn", [b'{"step": 5', b'{"step": 5, "loss": 0.2}', b"\0\0\0"])
def test_a_torn_line_is_left_out(run, torn):
    with run.metrics_file.open("ab") as file:
        file.write(torn)
    assert [m["step"] for m in run.read_metrics()] == [1, 2, 3, 4]


def test_every_flipped_bit_of_the_metrics_is_found(run):
    whole = run.metrics_file.read_bytes()
    for place in range(len(whole)):
        flip(run.metrics_file, place)
        with pytest.raises(UserError, match="is damaged") as caught:
            run.read_metrics()
        assert run.problems() == [str(caught.value)]
        run.metrics_file.write_bytes(whole)


def test_without_its_metrics_a_run_resumes(run):
    run.metrics_file.unlink()
    run.cut_back(4)
    train(run, 5, 6)
    assert [m["step"] for m in run.read_metrics()] == [5, 6]
    assert run.problems() == []


@pytest.mark.slow
@pytest.mark.parametrize("line", ["[]", "3", '{"loss": 1}', '{"step": "4"}', '{"step": 9}', "{"])
def test_a_nonsense_line_is_named(run, line):
    with run.metrics_file.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:5: is damaged; move the file away"):
        run.read_metrics()


# Results


def publish(run):
    run.save_posterior({"head": torch.ones(2)})
    with run.publishing_model() as staged:
        (staged / "inner").mkdir()
        write_jsonl(staged / "inner" / "config.json", [{"a": 1}])


def test_a_result_that_is_not_what_was_published_is_named(run):
    publish(run)
    assert run.done and run.problems() == []
    run.check_results()
    assert run.load_posterior()["head"].tolist() == [1, 1]
    for file in (run.model / "inner" / "config.json", run.posterior_file, run.metrics_file):
        flip(file, 3)
        with pytest.raises(
            UserError,
            match=(
                f"{file.name}: its checksum differs; run its `twcli train` command again with "
                "--overwrite"
            ),
        ):
            run.check_results()
        flip(file, 3)
    (run.model / "inner" / "config.json").unlink()
    assert run.problems() == [
        f"{run.model}/inner/config.json: cannot be read: No such file or directory"
    ]
    run.checksums_file.write_text("[")
    assert "checksums.json: cannot be read" in run.problems()[0]
    run.posterior_file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        run.load_posterior()


def test_a_damaged_verdict_is_named_and_keeps_nobody_from_the_run(run):
    publish(run)
    verdict = {"kind": "works", "sentence": "Works.", "advice": "Use it."}
    run.save_verdict(verdict, "twcli eval", "test.jsonl", date(2026, 12, 1))
    flip(run.verdict_file, 12)
    assert run.problems() == [
        f"{run.verdict_file}: its checksum differs; twcli eval writes it again"
    ]
    run.check_results()
    run.save_verdict(verdict, "twcli eval", "test.jsonl", date(2026, 12, 1))
    assert run.problems() == []


def test_a_publication_that_fails_publishes_nothing(run):
    run.save_posterior({"head": torch.ones(2)})
    with pytest.raises(ZeroDivisionError), run.publishing_model():
        raise ZeroDivisionError
    assert not run.done
    publish(run)
    assert run.done


# Settings and places


@pytest.mark.slow
def test_other_settings_are_refused_and_those_that_do_not_matter_are_not(run):
    run.check(settings(run.path, checkpoint_every=7, keep_checkpoints=1, device="cpu"))
    with pytest.raises(UserError, match=r"holds a run with beta: 0\.1, this one has 0\.2"):
        run.check(settings(run.path, beta=0.2))
    run.check(settings(run.path, beta=0.2, overwrite=True))
    run.config_file.write_text(run.config_file.read_text().replace("beta: 0.1", "beta: 0.3"))
    assert run.problems() == [f"{run.config_file}: beta is 0.3, but was 0.1 in training"]
    run.config_file.write_text("beta: [")
    assert "not valid YAML" in run.problems()[0]


def test_overwriting_leaves_nothing_of_the_old_run(run):
    publish(run)
    (run.path / "notes.txt").write_text("mine")
    run.begin(settings(run.path, overwrite=True))
    assert {p.name for p in run.path.iterdir()} == {"config.yaml", "notes.txt"}


def test_an_overwriting_that_was_killed_leaves_no_finished_run(run):
    publish(run)
    run.config_file.unlink()  # the first thing that goes
    assert not run.done
    run.check(settings(run.path, beta=0.2))
    run.begin(settings(run.path, beta=0.2))
    with pytest.raises(UserError, match=r"another settings\.beta"):
        run.checkpoints.newest(made(run) | {"settings": settings(run.path, beta=0.2).identity()})
    publish(run)
    assert run.done


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds thesis\.tex but no run"):
        RunFolder(tmp_path).check(settings(tmp_path))
    with pytest.raises(UserError, match=r"holds no run \(no config\.yaml\)"):
        RunFolder(tmp_path).read_config()


def test_one_writer_a_run(tmp_path):
    with RunFolder(tmp_path / "a").writer():
        (tmp_path / "a" / "config.yaml").touch()
        with (
            pytest.raises(UserError, match="another process is training here"),
            RunFolder(tmp_path / "a").writer(),
        ):
            pass
    with RunFolder(tmp_path / "a").writer():
        pass
    with RunFolder(tmp_path / "b").writer():
        pass
    assert not (tmp_path / "b").exists()


def test_a_disk_that_fails_is_one_line(tmp_path):
    with (
        pytest.raises(
            WorkFailed,
            match="metrics: No space left on device; run the same command again to resume",
        ),
        RunFolder(tmp_path / "a").writer(),
    ):
        raise OSError(28, os.strerror(28), "metrics")
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot be written"),
        RunFolder(tmp_path / "file" / "run").writer(),
    ):
        pass


@pytest.mark.parametrize("place", [".", "linked", "made"])
def test_a_folder_that_was_there_stays_and_does_not_hide_what_went_wrong(
    tmp_path, monkeypatch, place
):
    monkeypatch.chdir(
        tmp_path / "here" if (tmp_path / "here").mkdir() is None and place == "." else tmp_path
    )
    (tmp_path / "made").mkdir()
    (tmp_path / "linked").symlink_to("made")
    with pytest.raises(ZeroDivisionError), RunFolder(place).writer():
        raise ZeroDivisionError
    folder = tmp_path / {".": "here", "linked": "made"}.get(place, place)
    assert list(folder.iterdir()) == []
    with RunFolder(place).writer():  # the lock is free
        pass


def test_what_cannot_be_removed_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def busy(_path):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr("pathlib.Path.rmdir", busy)
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "r").writer():
        raise ZeroDivisionError
    with RunFolder(tmp_path / "r").writer():
        pass


@pytest.mark.parametrize(
    ("overwrite", "fix"), [(False, "; run the"), (True, "; without --overwrite, run the")]
)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "r: No space left on device"),
        (OSError("no tokenizer\nat all"), "r: no tokenizer"),
        (SafetensorError("I/O error: no space\nat all"), "r: I/O error: no space"),
    ],
)
def test_what_fails_at_the_export_says_how_to_resume(tmp_path, error, said, overwrite, fix):
    run = RunFolder(tmp_path / "r")
    with pytest.raises(WorkFailed) as caught, run.writer():
        run.begin(settings(run.path, overwrite=overwrite))
        with run.publishing_model():
            raise error
    assert str(caught.value).endswith(f"{said}{fix} same command again to resume")


@pytest.mark.parametrize(
    ("begun", "fix"), [(False, "; run the"), (True, "; without --overwrite, run the")]
)
def test_an_interruption_says_how_to_resume(tmp_path, begun, fix):
    run = RunFolder(tmp_path / "r")
    with (
        pytest.raises(Interrupted, match=f"^interrupted{fix} same command again to resume$"),
        run.writer(),
    ):
        if begun:
            run.begin(settings(run.path, overwrite=True))
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("overwrite", "fix"), [(False, "run the"), (True, "without --overwrite, run the")]
)
def test_an_interrupted_training_says_how_to_resume(
    model_dir, tmp_path, monkeypatch, overwrite, fix
):
    config = settings(
        tmp_path / "r",
        model=model_dir,
        data=write_jsonl(tmp_path / "d.jsonl", make_records(4, 3)),
        baseline=None,
        baseline_policy="dynamic",
        warm_start="none",
        steps=3,
        batch_tokens=200,
        device="cpu",
        overwrite=overwrite,
    )
    run = RunFolder(config.out)
    with pytest.raises(Interrupted) as caught, run.writer():
        setup = prepare(config, run, lambda _line: None, no_bar)
        trainer.begin(setup)
        monkeypatch.setattr("twcli.signals.pending", lambda: True)
        list(trainer.fit(setup, lambda _line: None))
    assert (
        str(caught.value)
        == f"interrupted after step 1 of 3, which is stored; {fix} same command again to resume"
    )


def test_a_link_among_the_results_is_removed_and_what_it_leads_to_is_not(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    run.checkpoints.path.rename(tmp_path / "elsewhere" / "checkpoints")
    run.checkpoints.path.symlink_to(tmp_path / "elsewhere" / "checkpoints")
    run.begin(settings(run.path, overwrite=True))
    assert {p.name for p in run.path.iterdir()} == {"config.yaml"}
    assert len(list((tmp_path / "elsewhere" / "checkpoints").iterdir())) == 2


def test_the_card_tells_the_steps_that_were_made(encoder, tmp_path):
    assert "| steps, seed | 37, 0 |" in model_card(
        settings(tmp_path, epochs=3), encoder, {"torch": "2"}, 37
    )


def test_the_metrics_are_plain_json_lines(run):
    assert [
        json.loads(line) for line in run.metrics_file.read_text().splitlines()
    ] == run.read_metrics()


def test_a_missing_tracker_is_reported_first(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match="--tracker wandb: needs pip install wandb"):
        RunFolder(tmp_path / "r").check(settings(tmp_path, tracker="wandb"))


def test_a_tracker_gets_the_numbers_of_each_step_and_is_finished(run, monkeypatch):
    calls = []

    class Tracker:
        def __init__(self, name):
            calls.append(("made", name))

        def start(self):
            calls.append("started")

        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    with pytest.raises(KeyboardInterrupt), run.tracked("wandb", 4):
        run.append_metrics({"step": 5, "loss": 0.2, "stage": "hold", "posterior_mass": [1.0]})
        raise KeyboardInterrupt
    run.append_metrics({"step": 6, "loss": 0.1})
    assert calls == [("made", "run"), "started", (5, {"loss": 0.2}), "finished"]
