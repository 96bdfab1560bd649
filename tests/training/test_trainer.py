import dataclasses
import json
import math
import random
import shutil
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import (
    WORDS,
    make_model,
    make_records,
    make_strategies,
    make_tokenizer,
    matched,
    strategies_of,
    write_jsonl,
)
from twcli.commands.precompute import precompute
from twcli.config.evaluate import EvalConfig
from twcli.config.precompute import PrecomputeConfig
from twcli.config.train import TrainConfig
from twcli.errors import UserError, WorkFailed
from twcli.evaluation.evaluate import evaluate
from twcli.models.building import load_run
from twcli.models.inputs import open_inputs
from twcli.models.latents import LatentModel, LatentOutput
from twcli.storage.run_folder import RunFolder
from twcli.training import finishing, trainer
from twcli.training.diagnostics import SUMMARY
from twcli.training.frozen_baseline import rescore
from twcli.training.held_out import read_held_out
from twcli.training.objective import step_loss
from twcli.training.schedule import batch_sampler_of
from twcli.training.setup import prepare


@contextmanager
def no_bar(_label, _total):
    yield lambda _count: None


def silent(_text):
    pass


@pytest.fixture(autouse=True)
def distinct(request, monkeypatch):
    """Each strategy of these records writes one string a prompt: it takes many draws to show it,
    which are not made here. Not where a test asks for `repeating`.
    """
    if "repeating" not in request.fixturenames:
        monkeypatch.setattr("twcli.discovery.naming.identical_pairs", lambda *_: 1.0)


@pytest.fixture
def repeating():
    """Strategies may repeat within a prompt."""


def name_as(setup, latent_N, **changes):
    """The job as if that had been found."""
    setup.latent_N[:] = latent_N
    setup.naming = dataclasses.replace(setup.naming, latent_N=np.array(latent_N), **changes)
    rows_H = setup.held.rows_H
    setup.held = dataclasses.replace(setup.held, latent_H=setup.latent_N[rows_H])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model, data and its cache; tests must not change them."""
    folder = tmp_path_factory.mktemp("inputs")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    data = write_jsonl(folder / "data.jsonl", make_records(20, 3))
    config = PrecomputeConfig(
        model=str(folder / "model"), data=data, out=str(folder / "b.h5"), device="cpu"
    )
    precompute(config, silent, no_bar)
    return folder


def settings(inputs, out, **changes):
    values = {
        "model": str(inputs / "model"),
        "data": str(inputs / "data.jsonl"),
        "baseline": str(inputs / "b.h5"),
        "latents": 3,
        "out": str(out),
        "steps": 12,
        "batch_tokens": 200,
        "checkpoint_every": 4,
        "device": "cpu",
        **changes,
    }
    return TrainConfig(**values)


def run(config, stop_after=None):
    """What `twcli train` does; `stop_after` leaves as a kill would: no export, no clean-up."""
    folder = RunFolder(config.out)
    with folder.writer():
        folder.check(config)
        if folder.done and not config.overwrite:
            return folder
        setup = prepare(config, folder, silent, no_bar)
        folder.begin(setup.config)
        for metrics in trainer.fit(setup, silent):
            if metrics["step"] == stop_after:
                return folder
        finishing.export(setup)
    return folder


DYNAMIC = {"baseline": None, "baseline_policy": "dynamic"}


@pytest.fixture
def refines(monkeypatch):
    """A tenth of these few records is held out, measured at every third step, and the generator is
    taken to read z at once, and to disagree with names: step 5 is the first that refines.
    """
    monkeypatch.setattr("twcli.training.held_out.LEAST_RECORDS", 3)
    monkeypatch.setattr("twcli.training.setup.measured_every", lambda *_: 3)
    monkeypatch.setattr("twcli.training.stages.CERTAIN", 0.0)
    monkeypatch.setattr("twcli.training.stages.AGREED", -1.0)
    monkeypatch.setattr("twcli.training.stages.Course._disagrees", lambda _course: True)


class Disturbed:
    """A cache whose values went through `change`."""

    def __init__(self, cache, change):
        self.cache, self.change = cache, change

    def read(self, rows):
        flat, lengths = self.cache.read(rows)
        return self.change(flat), lengths


def one_in_a_thousand(flat):
    """Off by 0.03 nats, one token by 0.6: as bf16 is on a model of 135 M parameters."""
    signs = np.where(np.arange(len(flat)) % 2, 1, -1)
    off = 0.03 * signs
    off[0] = 0.6
    return flat + off


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made_in", "change", "fits"),
    [
        ("fp32", lambda flat: flat + 1e-5, True),
        ("fp32", lambda flat: flat + 2e-3, False),
        ("fp32", one_in_a_thousand, False),
        ("bf16", one_in_a_thousand, True),
        ("bf16", lambda flat: flat[::-1], False),
        ("bf16", lambda flat: flat * np.nan, False),
    ],
)
def test_a_cache_is_refused_for_what_no_rounding_explains(inputs, tmp_path, made_in, change, fits):
    config = settings(inputs, tmp_path / "run")
    opened = open_inputs(**config.inputs(), say=silent)
    cache, _ = opened.open_cache(config.baseline)
    rest = (opened.encoded, Disturbed(cache, change), config, made_in)
    with nullcontext() if fits else pytest.raises(UserError, match="the model gives other b_t"):
        mean, largest = rescore(opened.model, opened.encoder, *rest)
        assert mean <= largest


def test_epochs_that_make_no_step_are_refused(inputs, tmp_path):
    with pytest.raises(
        UserError, match="--epochs 1: 3 batches in all, and an optimiser step takes 8"
    ):
        run(
            settings(inputs, tmp_path / "run", steps=None, epochs=1, accumulate=8, batch_tokens=400)
        )


def weights(folder):
    return load_file(folder.model / "model.safetensors") | load_file(folder.posterior_file)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_after", "changes"),
    [
        (3, {}),
        (4, {}),
        (6, {}),
        (11, {}),
        (6, {"history_dropout": 0.3, "latent_tokens": 2, **DYNAMIC}),
        (6, {"posterior": "separate", "ablation": "token-baseline", **DYNAMIC}),
        (6, {"adapt": "lora", "lora_rank": 2}),
        (6, {"adapt": "frozen"}),
        (
            6,
            {
                "warm_start": "none",
                "beta_warmup": 0.5,
                "beta_cycles": 2,
                "posterior_update": "balanced",
                "divergence": 0.1,
                "normalise": True,
                "free_bits": 0.1,
            },
        ),
    ],
)
def test_a_killed_run_ends_like_an_unbroken_one(inputs, tmp_path, stop_after, changes, refines):
    whole = run(settings(inputs, tmp_path / "whole", **changes))
    broken = settings(inputs, tmp_path / "broken", **changes)
    run(broken, stop_after)
    folder = run(broken)
    assert folder.read_metrics() == whole.read_metrics()
    assert [m["step"] for m in folder.read_metrics()] == list(range(1, 13))
    assert same(weights(folder), weights(whole))


@pytest.mark.slow
def test_dropout_follows_from_the_seed_and_the_batch_alone(inputs, tmp_path, monkeypatch):
    """Not from what was drawn before: a resumed process, or one of several,
    need not have drawn the same.
    """
    shutil.copytree(inputs / "model", tmp_path / "model")
    model = make_model()
    model.config.attention_dropout = 0.3
    model.save_pretrained(tmp_path / "model")
    whole, broken, other = (
        settings(
            inputs,
            tmp_path / name,
            model=str(tmp_path / "model"),
            accumulate=2,
            seed=seed,
            **DYNAMIC,
        )
        for name, seed in (("whole", 0), ("broken", 0), ("other", 1))
    )
    expected = run(whole)
    assert expected.read_metrics() != run(other).read_metrics()
    append = RunFolder.append_metrics
    monkeypatch.setattr(
        RunFolder,
        "append_metrics",
        lambda folder, metrics: (torch.rand(5), append(folder, metrics)),
    )
    run(broken, 6)
    folder = run(broken)
    assert folder.read_metrics() == expected.read_metrics()
    assert same(weights(folder), weights(expected))


@pytest.mark.slow
def test_no_two_batches_have_the_same_dropout(inputs, tmp_path, monkeypatch):
    seeds = []
    seeded = torch.manual_seed
    monkeypatch.setattr(
        trainer.torch, "manual_seed", lambda seed: (seeds.append(seed), seeded(seed))[1]
    )
    run(settings(inputs, tmp_path / "r", accumulate=2, steps=5))
    assert len({*seeds[-10:]}) == 10


def use_at_most(count, monkeypatch):
    """Namings find so many alternatives: how many random records have would hang on
    the rounding of a processor.
    """
    monkeypatch.setattr(
        "twcli.discovery.one_string.alternatives",
        lambda _clusters, _sizes, latents: min(latents, count),
    )
    monkeypatch.setattr("twcli.discovery.one_string.ENOUGH", 0.0)


@pytest.fixture
def two_used(monkeypatch):
    use_at_most(2, monkeypatch)


@pytest.mark.slow
def test_a_run_with_latents_to_spare_resumes_as_well(inputs, tmp_path, two_used):
    whole, broken = (settings(inputs, tmp_path / name, latents=5) for name in ("whole", "broken"))
    run(broken, 6)
    assert same(weights(run(broken)), weights(run(whole)))


@pytest.mark.slow
def test_latents_to_spare_are_written_under_but_neither_assigned_nor_expected(
    inputs, tmp_path, two_used, monkeypatch
):
    said, written = [], []
    config = settings(inputs, tmp_path / "r", latents=5, steps=60)
    forward = LatentModel.forward

    def watched(model, batch, latent_B=None, **how):
        written.extend(latent_B.tolist())
        return forward(model, batch, latent_B, **how)

    folder = RunFolder(config.out)
    with folder.writer():
        setup = prepare(config, folder, said.append, no_bar)
        monkeypatch.setattr(LatentModel, "forward", watched)
        folder.begin(config)
        metrics = list(trainer.fit(setup, silent))
    assert any("latents: 2 of 5 are used" in line for line in said)
    assert set(setup.latent_N) == {0, 1} and set(written) == {0, 1, 2, 3, 4}
    assert sum(metrics[-1]["posterior_mass"][:2]) > 0.95
    counts = np.bincount(written) / len(written)  # three write the first's rows, two the second's
    shares = np.bincount(setup.latent_N) / len(setup.latent_N)
    assert counts[[0, 2, 4]] == pytest.approx(np.full(3, shares[0] / 3), abs=0.05)
    assert counts[[1, 3]] == pytest.approx(np.full(2, shares[1] / 2), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"beta_warmup": 1.0},
        {"free_bits": 1.0},
        {"posterior_update": "hard"},
        {"posterior_update": "balanced"},
        {"divergence": 1.0},
        {"normalise": True},
    ],
)
def test_every_option_against_collapse_changes_the_training(inputs, tmp_path, change):
    plain, changed = (
        run(settings(inputs, tmp_path / name, steps=3, warm_start="none", **options))
        for name, options in (("plain", {}), ("changed", change))
    )
    assert not same(weights(plain), weights(changed))
    metrics = changed.read_metrics()[-1]
    assert math.isfinite(metrics["gradient_norm"]) and ("divergence" in metrics) == (
        "divergence" in change
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("--free-bits", {"free_bits": 0.5}),
    ],
)
def test_an_option_that_has_no_effect_is_reported(inputs, tmp_path, flag, changes):
    said = []
    prepare(
        settings(inputs, tmp_path / "r", **changes), RunFolder(tmp_path / "r"), said.append, no_bar
    )
    assert any(f"{flag} has no effect" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(("adapt", "stored"), [("full", True), ("lora", False)])
def test_a_checkpoint_holds_what_is_trained(inputs, tmp_path, adapt, stored):
    folder = run(settings(inputs, tmp_path / "r", steps=2, adapt=adapt))
    tensors = load_file(folder.checkpoints.last / "state.safetensors")
    assert (
        any(
            ".up_proj." in name and "lora" not in name
            for name in tensors
            if name.startswith("model.")
        )
        == stored
    )
    assert any("lora" in name for name in tensors) != stored and any(
        name.startswith("model.head.") for name in tensors
    )


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(inputs, tmp_path):
    whole = run(settings(inputs, tmp_path / "whole"))
    broken = settings(inputs, tmp_path / "broken")
    run(broken, 10)
    newest = tmp_path / "broken" / "checkpoints" / "step-00000008" / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert "step-00000008: damaged" in RunFolder(tmp_path / "broken").problems()[0]
    assert same(weights(run(broken)), weights(whole))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("posterior", "changes", "sequences"),
    [
        ("shared", {}, 4),
        ("separate", {}, 4),
        ("exact", {}, 3),
        ("shared", DYNAMIC, 4),
        ("separate", DYNAMIC, 5),
        ("exact", DYNAMIC, 4),
    ],
)
def test_metrics_count_the_sequences_read_per_record(
    inputs, tmp_path, posterior, changes, sequences
):
    metrics = run(
        settings(inputs, tmp_path / "r", posterior=posterior, steps=3, warm_start="none", **changes)
    ).read_metrics()
    assert [m["sequences_per_record"] for m in metrics] == [sequences] * 3
    assert all(m["records"] > 1 for m in metrics)


@pytest.mark.slow
def test_training_learns_and_the_posterior_follows_the_warm_start(inputs, tmp_path):
    metrics = run(settings(inputs, tmp_path / "r", steps=90, lr=3e-3)).read_metrics()
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert metrics[0]["mutual_information"] < 1e-6 < 0.3 < metrics[-1]["mutual_information"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, DYNAMIC], ids=["frozen", "dynamic"])
def test_the_score_of_training_is_the_one_of_evaluation(inputs, tmp_path, changes):
    """On the same records; only seeds of the prompts and halves are drawn, and
    all prompts are probed here.
    """
    config = settings(inputs, tmp_path / "r", steps=30, lr=3e-3, **changes)
    folder = RunFolder(config.out)
    with folder.writer():
        setup = prepare(config, folder, silent, no_bar)
        trainer.begin(setup)
        list(trainer.fit(setup, silent))
        score = finishing.judge(setup, no_bar).score
        finishing.export(setup)
    evaluation = EvalConfig(run=config.out, data=config.data, device="cpu", bootstrap=10)
    assert evaluate(evaluation, silent, no_bar)[0]["score"] == pytest.approx(score, abs=1e-4)


@pytest.mark.slow
def test_tensorboard_has_what_the_metrics_have(inputs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings(inputs, tmp_path / "r", steps=6, checkpoint_every=2, tracker="tensorboard")
    run(config, stop_after=5)  # resumed after step 4
    folder = run(config)
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    found = {e.step: e.value for e in events.Scalars("loss")}
    assert found == {m["step"]: pytest.approx(m["loss"], rel=1e-6) for m in folder.read_metrics()}
    assert "posterior_mass" not in events.Tags()["scalars"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
def test_a_compiled_backbone_gives_the_same_training(inputs, tmp_path):
    plain, compiled = (
        run(settings(inputs, tmp_path / name, steps=3, **changes)).read_metrics()
        for name, changes in (("plain", {}), ("compiled", {"compile": True}))
    )
    assert [m["loss"] for m in compiled] == pytest.approx([m["loss"] for m in plain], rel=1e-4)
    AutoModelForCausalLM.from_pretrained(tmp_path / "compiled" / "model")


@pytest.mark.slow
def test_labels_are_never_read(inputs, tmp_path):
    scrambled = [
        r | {"strategy": f"other{i % 7}", "answer": i} for i, r in enumerate(make_records(20, 3))
    ]
    data = write_jsonl(tmp_path / "scrambled.jsonl", scrambled)
    one = run(settings(inputs, tmp_path / "a", steps=4))
    other = run(settings(inputs, tmp_path / "b", steps=4, data=data))
    assert same(weights(one), weights(other))


@pytest.mark.slow
def test_the_seed_decides(inputs, tmp_path):
    runs = [
        run(settings(inputs, tmp_path / name, steps=4, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


@pytest.mark.slow
def test_the_exported_model_is_plain_transformers(inputs, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run(settings(inputs, tmp_path / "r", steps=3))
    model = AutoModelForCausalLM.from_pretrained(folder.model)
    tokenizer = AutoTokenizer.from_pretrained(folder.model)
    prompt = tokenizer(
        "<bos> <x> w0 w1 </x> <z> <z2> </z> <y>", add_special_tokens=False, return_tensors="pt"
    )
    assert prompt["input_ids"].tolist() == [[1, 4, 10, 11, 5, 8, 32, 9, 6]]
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert output.shape[1] > 9
    assert set(model.generation_config.eos_token_id) == {7, 2}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"max_length": 100}, "max_length"),
        ({"attention": "eager"}, "attention"),
    ],
)
def test_a_cache_made_otherwise_is_refused_by_field(inputs, tmp_path, change, field):
    with pytest.raises(UserError, match=field):
        run(settings(inputs, tmp_path / "r", **change))


def test_a_cache_of_another_model_or_other_data_is_refused(inputs, tmp_path):
    shutil.copytree(inputs / "model", tmp_path / "model")
    make_model(seed=5).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="weights"):
        run(settings(inputs, tmp_path / "r", model=str(tmp_path / "model")))
    records = make_records(20, 3)
    records[16]["y"] += " w0"
    with pytest.raises(UserError, match=r"17|data"):
        run(settings(inputs, tmp_path / "r2", data=write_jsonl(tmp_path / "d.jsonl", records)))


@pytest.mark.slow
def test_another_setting_on_the_same_folder_is_refused(inputs, tmp_path):
    run(settings(inputs, tmp_path / "r", steps=3))
    with pytest.raises(UserError, match=r"run with beta: 0.1, this one has 0.2"):
        run(settings(inputs, tmp_path / "r", steps=3, beta=0.2))
    run(settings(inputs, tmp_path / "r", steps=3, beta=0.2, overwrite=True))
    assert RunFolder(tmp_path / "r").read_config().beta == 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("default", "value", "field"),
    [("ADAM_BETAS", (0.9, 0.9), "optimiser.betas")],
)
def test_a_run_under_other_defaults_is_not_gone_on_with(
    inputs, tmp_path, monkeypatch, default, value, field
):
    run(settings(inputs, tmp_path / "r"), stop_after=5)
    monkeypatch.setattr(f"twcli.training.setup.{default}", value)
    with pytest.raises(UserError, match=f"made with another {field}"):
        run(settings(inputs, tmp_path / "r"))


def test_a_folder_of_something_else_is_left_alone(inputs, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds thesis\.tex but no run"):
        run(settings(inputs, tmp_path / "r"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(inputs, tmp_path):
    with pytest.raises(WorkFailed, match=r"step \d+: the loss is .* data lines \d+"):
        run(settings(inputs, tmp_path / "r", lr=1e30))
    with pytest.raises(
        WorkFailed, match=r"step \d+: (the loss is|token weights must be finite).* data lines \d+"
    ):
        run(settings(inputs, tmp_path / "dynamic", lr=1e30, **DYNAMIC))


def test_too_few_records_train_without_a_naming_and_say_so(inputs, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", make_records(20, 1))
    config = settings(inputs, tmp_path / "r", steps=2, data=data, baseline=str(tmp_path / "b.h5"))
    precompute(
        PrecomputeConfig(model=config.model, data=data, out=config.baseline, device="cpu"),
        silent,
        no_bar,
    )
    folder, said = RunFolder(config.out), []
    with folder.writer():
        setup = prepare(config, folder, said.append, no_bar)
        folder.begin(config)
        assert [m["stage"] for m in trainer.fit(setup, silent)] == ["free", "free"]
    assert any("twcli sample --model" in line for line in said)


def test_a_held_row_trains_only_its_latent_and_teaches_the_posterior(inputs, tmp_path):
    nll, logits = torch.rand(2, 1, 4, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    output = LatentOutput(nll, torch.full((2, 3), 1 / 3).log(), torch.log_softmax(logits, -1), 4)
    batch = SimpleNamespace(active_BS=torch.ones(2, 4, dtype=torch.bool), baseline_BS=None)
    loss_B, parts = step_loss(
        output, batch, settings(inputs, tmp_path / "r", weighting="uniform"), torch.tensor([1, 2])
    )
    loss_B.sum().backward()
    assert torch.allclose(nll.grad, torch.full((2, 1, 4), 1 / 4))
    assert logits.grad.argmin(1).tolist() == [1, 2]  # the step raises the held latent's logit
    assert parts["posterior_cross_entropy"] == pytest.approx(torch.tensor(3.0).log().item())
    assert parts["kl"] == pytest.approx(torch.tensor(3.0).log().item())


@pytest.mark.slow
def test_the_stages_of_a_run_and_what_they_read(inputs, tmp_path, refines):
    metrics = run(settings(inputs, tmp_path / "r")).read_metrics()
    assert [m["stage"] for m in metrics] == ["hold"] * 4 + ["refine", "settle"] * 4
    assert [m["sequences_per_record"] for m in metrics] == [2] * 4 + [4, 2] * 4
    measured = [m for m in metrics if "held_out_nll" in m]
    assert [m["step"] for m in measured] == [3, 6, 9, 12]
    # what z does to the losses is known of a step that reads one branch
    assert all(m["z_sensitivity_sum"] > 0 and m["amplification"] > 0 for m in measured)
    assert all(len(m["held_out_agreement"]) == 3 for m in measured)


@pytest.mark.slow
def test_what_counts_is_measured_at_the_positions_that_stay(inputs, tmp_path, refines, monkeypatch):
    """Over three of twelve steps the section grows: the first measurement is the first that counts.
    After an interruption the widths are the same.
    """
    widths = []

    def reading(held, model, *rest):
        widths.append(model.section_width)
        return read_held_out(held, model, *rest)

    monkeypatch.setattr(trainer, "read_held_out", reading)
    run(settings(inputs, tmp_path / "r", checkpoint_every=1), stop_after=2)
    run(settings(inputs, tmp_path / "r", checkpoint_every=1))
    assert widths == [1.0] * 6  # four measured, and two to choose weights by
    monkeypatch.setattr("twcli.training.setup.measured_every", lambda *_: 1)
    widths.clear()
    run(settings(inputs, tmp_path / "every"))
    assert widths[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.slow
def test_held_out_records_are_not_trained_on(inputs, tmp_path, refines, monkeypatch):
    config, read = settings(inputs, tmp_path / "r", steps=30), set()
    folder = RunFolder(config.out)
    inner = trainer._backward

    def backward(setup, model, stage, batch, *rest):
        read.update(batch.rows_B.tolist())
        return inner(setup, model, stage, batch, *rest)

    monkeypatch.setattr(trainer, "_backward", backward)
    with folder.writer():
        setup = prepare(config, folder, silent, no_bar)
        trainer.begin(setup)
        list(trainer.fit(setup, silent))
    held = setup.held.rows_H
    assert len(held) == 6 and len(set(setup.encoded.prompt_index[held])) == 2
    assert read == set(range(len(setup.encoded))) - set(held.tolist())


@pytest.mark.slow
def test_the_posterior_without_names_reads_all_latents(inputs, tmp_path):
    metrics = run(settings(inputs, tmp_path / "r", warm_start="none", steps=3)).read_metrics()
    assert [(m["stage"], m["sequences_per_record"]) for m in metrics] == [("free", 4)] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("latents", "used"), [(2, 2), (3, 3), (8, 4)])
def test_no_step_reads_more_than_K_plus_1_sequences_a_record(
    inputs, tmp_path, latents, used, monkeypatch, refines
):
    use_at_most(used, monkeypatch)
    config = settings(inputs, tmp_path / "r", latents=latents, execution="plain")
    folder, read, counted = RunFolder(config.out), [], []
    inner = trainer._measured

    def measured(*arguments):  # whose sequences are no part of the step
        before = list(read)
        found = inner(*arguments)
        read[:] = before
        return found

    monkeypatch.setattr(trainer, "_measured", measured)
    with folder.writer():
        setup = prepare(config, folder, silent, no_bar)
        folder.begin(config)
        setup.model.backbone.base_model.register_forward_pre_hook(
            lambda _module, _args, inputs: read.append(len(inputs["input_ids"])), with_kwargs=True
        )
        for metrics in trainer.fit(setup, silent):
            counted.append((metrics["stage"], sum(read) / metrics["records"]))
            assert counted[-1][1] == metrics["sequences_per_record"]
            read.clear()
    assert dict(counted) == {"hold": 2, "refine": used + 1, "settle": 2}


@pytest.mark.slow
def test_a_step_leaves_out_no_more_than_it_may(inputs, tmp_path, refines):
    every = {
        share: [
            metrics
            for warm in ("centered", "none")
            for metrics in run(
                settings(inputs, tmp_path / f"{share}{warm}", warm_start=warm, prune=share)
            ).read_metrics()
        ]
        for share in (0.0, 0.3)
    }
    assert all(m["pruned"] == m["pruned_bound"] == 0 for m in every[0.0])
    assert all(
        m["pruned"] <= 0.3 and (m["pruned_bound"] == 0 or m["stage"] == "free") for m in every[0.3]
    )
    left_out = {m["stage"] for m in every[0.3] if m["pruned"] > 0}
    assert "refine" in left_out and "hold" not in left_out and "settle" not in left_out


@pytest.mark.slow
def test_a_cut_that_b_t_does_not_feel_changes_no_assignment(inputs, tmp_path):
    """The latents' losses differ at the first two tokens alone, where all of b_t is."""
    config = settings(inputs, tmp_path / "r", prune=0.4)
    folder = RunFolder(config.out)
    with folder.writer():
        setup = prepare(config, folder, silent, no_bar)
    rows = np.arange(12)
    batch = trainer.collate(rows, setup.encoded, setup.encoder, setup.cache)
    weights = torch.zeros_like(batch.baseline_BS)
    weights[:, :2] = 1.0
    batch, read = dataclasses.replace(batch, baseline_BS=weights), setup.model.score_branches
    setup.model.score_branches = lambda b, _first: (
        (nll := read(b)[0]).masked_fill(torch.arange(nll.shape[2]) >= 2, 1.0),
        None,
    )
    found = {}
    for share in (0.0, 0.4):
        setup.config = dataclasses.replace(config, prune=share)
        name_as(setup, np.full(len(setup.latent_N), -1))
        nll_BKS, pruned = trainer._refine(setup, batch, rows, 0)
        assert nll_BKS.shape == (12, 3, batch.targets_BS.shape[1]) and pruned == 0
        found[share] = setup.latent_N.copy()
    assert np.array_equal(found[0.0], found[0.4]) and (found[0.4][rows] >= 0).all()


@pytest.mark.slow
def test_prompts_read_once_train_the_same_model_from_fewer_tokens(inputs, tmp_path, refines):
    seen = {}
    for execution in ("plain", "auto"):
        config = settings(inputs, tmp_path / execution, execution=execution)
        folder, tokens = RunFolder(config.out), []
        with folder.writer():
            setup = prepare(config, folder, silent, no_bar)
            name_as(setup, np.arange(len(setup.latent_N)) % 3)
            setup.used = 3  # random records have no clusters but those of rounding
            assert setup.model.execution == execution
            folder.begin(config)
            setup.model.backbone.base_model.register_forward_pre_hook(
                lambda _module, _args, inputs, tokens=tokens: tokens.append(
                    inputs["input_ids"].numel()
                ),
                with_kwargs=True,
            )
            seen[execution] = (
                [metrics["loss"] for metrics in trainer.fit(setup, silent)],
                sum(tokens),
            )
    assert seen["auto"][0][0] == pytest.approx(seen["plain"][0][0], rel=1e-5)
    # a step's rounding grows over the next ones
    assert seen["auto"][0] == pytest.approx(seen["plain"][0], rel=1e-3)
    assert seen["auto"][1] < 0.8 * seen["plain"][1]


@pytest.mark.slow
def test_a_model_that_cannot_share_its_prompt_is_read_plainly_and_said_so(inputs, tmp_path):
    shutil.copytree(inputs / "model", tmp_path / "model")
    model = make_model()
    model.config.attention_dropout = 0.1
    model.save_pretrained(tmp_path / "model")
    config = settings(inputs, tmp_path / "r", model=str(tmp_path / "model"), **DYNAMIC)
    folder, said = RunFolder(config.out), []
    with folder.writer():
        setup = prepare(config, folder, said.append, no_bar)
    assert setup.model.execution == "plain"
    assert [line for line in said if "execution: plain" in line and "dropout" in line]


@pytest.mark.slow
def test_latents_to_spare_do_not_keep_names_from_being_corrected(
    inputs, tmp_path, two_used, refines, monkeypatch
):
    """They write what the used ones write, so that none would ever be certain among all."""
    monkeypatch.setattr("twcli.training.stages.CERTAIN", 0.5)
    metrics = run(settings(inputs, tmp_path / "r", latents=5)).read_metrics()
    assert all(m["held_out_certainty"] >= 0.5 for m in metrics if "held_out_nll" in m)
    assert {m["sequences_per_record"] for m in metrics if m["stage"] == "refine"} == {3.0}


@pytest.mark.slow
def test_refining_corrects_a_naming_that_is_partly_wrong(tmp_path):
    """Strategies that are functions of x; a fifth of the names is drawn again, the generator's
    assignment finds the right ones.
    """
    rng = random.Random(0)
    records = []
    for _ in range(150):
        x = rng.choices(WORDS, k=3)
        records += [
            {"x": " ".join(x), "y": " ".join(y), "strategy": name}
            for name, y in (
                ("copy", [*x, x[0]]),
                ("reverse", [*x[::-1], x[1]]),
                ("last", [x[-1]] * 4),
            )
            if len(set(x)) == 3
        ]
    make_model(initializer=0.05).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    data, base = write_jsonl(tmp_path / "d.jsonl", records), str(tmp_path / "b.h5")
    precompute(
        PrecomputeConfig(model=str(tmp_path / "model"), data=data, out=base, device="cpu"),
        silent,
        no_bar,
    )
    config = TrainConfig(
        model=str(tmp_path / "model"),
        data=data,
        baseline=base,
        latents=3,
        out=str(tmp_path / "r"),
        steps=300,
        batch_tokens=1000,
        device="cpu",
        lr=5e-3,
    )
    names = ["copy", "reverse", "last"]
    truth = np.array([names.index(r["strategy"]) for r in records])
    noisy = np.where(
        np.random.default_rng(0).random(len(truth)) < 0.8,
        truth,
        np.random.default_rng(1).integers(3, size=len(truth)),
    )
    folder = RunFolder(config.out)
    with folder.writer():
        setup = prepare(config, folder, silent, no_bar)
        name_as(setup, noisy)
        folder.begin(config)
        list(trainer.fit(setup, silent))
    trained = np.setdiff1d(np.arange(len(truth)), setup.held.rows_H)
    assert (noisy == truth)[trained].mean() < 0.9
    assert (setup.latent_N == truth)[trained].mean() > 0.98


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """As `inputs`, with strategies that the tiny model tells from each other and one completion
    a prompt.
    """
    folder = tmp_path_factory.mktemp("single")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    data = write_jsonl(folder / "data.jsonl", make_strategies(60))
    config = PrecomputeConfig(
        model=str(folder / "model"), data=data, out=str(folder / "b.h5"), device="cpu"
    )
    precompute(config, silent, no_bar)
    return folder


def prepared(config):
    folder, said = RunFolder(config.out), []
    with folder.writer():
        return prepare(config, folder, said.append, no_bar), said


@pytest.mark.slow
def test_one_completion_a_prompt_is_named_and_held_to_the_end(single, tmp_path, repeating):
    setup, said = prepared(settings(single, tmp_path / "r"))
    truth = strategies_of(make_strategies(60))
    assert matched(setup.latent_N, truth, 3) > 0.9 and setup.used == 3
    assert setup.course.named and not setup.course.corrected
    assert not setup.probe.distinct and sorted(setup.probe.rows) == list(range(60))
    assert any("completions of a prompt may share a latent" in line for line in said)
    assert any("of the records expected right, by chance" in line for line in said)


@pytest.mark.slow
def test_a_naming_of_strategies_that_repeat_is_held_to_the_end(
    single, tmp_path, repeating, refines
):
    metrics = run(settings(single, tmp_path / "r")).read_metrics()
    assert {m["stage"] for m in metrics} == {"hold"}


@pytest.mark.slow
def test_where_a_strategy_is_one_string_the_generator_corrects_the_naming(inputs, tmp_path):
    setup, said = prepared(settings(inputs, tmp_path / "r", steps=20))
    assert setup.course.named and setup.course.corrected
    assert setup.probe.distinct
    assert any("completions of a prompt never share a latent" in line for line in said)


@pytest.mark.slow
def test_a_killed_run_of_strategies_that_repeat_ends_like_an_unbroken_one(
    single, tmp_path, repeating, refines
):
    whole = run(settings(single, tmp_path / "whole"))
    broken = settings(single, tmp_path / "broken")
    run(broken, 6)
    folder = run(broken)
    assert folder.read_metrics() == whole.read_metrics()
    assert same(weights(folder), weights(whole))


@pytest.mark.slow
def test_a_run_says_later_how_its_records_were_named(single, inputs, tmp_path, monkeypatch):
    """Evaluation takes the same prompts for its score as training did."""
    from twcli.discovery.prior import identical_pairs

    for folder, name, one_string in ((inputs, "a", True), (single, "b", False)):
        if not one_string:
            monkeypatch.setattr("twcli.discovery.naming.identical_pairs", identical_pairs)
        config = settings(folder, tmp_path / name, steps=3)
        made = RunFolder(config.out)
        with made.writer():
            setup = prepare(config, made, silent, no_bar)
            trainer.begin(setup)
            list(trainer.fit(setup, silent))
            score = finishing.judge(setup, no_bar).score
            finishing.export(setup)
        assert RunFolder(tmp_path / name).read_naming()["one_string"] is one_string
        evaluation = EvalConfig(run=config.out, data=config.data, device="cpu", bootstrap=10)
        found = evaluate(evaluation, silent, no_bar)[0]["score"]
        assert found == pytest.approx(score, abs=2e-3)


def test_metrics_torn_by_a_kill_are_cut_back(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics_file.write_text(
        "".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4'
    )
    folder.cut_back(2)
    assert folder.metrics_file.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.slow
def test_each_step_logs_the_diagnostics(inputs, tmp_path):
    for name, changes in (("a", {}), ("b", {"posterior": "exact", **DYNAMIC})):
        metrics = run(
            settings(inputs, tmp_path / name, steps=3, warm_start="none", **changes)
        ).read_metrics()
        for m in metrics:
            known = {key: m[key] for key in SUMMARY}
            assert all(value is not None and value >= 0 for value in known.values()), known
            assert 0 < m["informative"] <= 1 and m["uniform_rows"] == 0
            assert m["latent_gradient_norm"] > 0
            assert (m["posterior_gradient_norm"] is None) == (name == "b")
            assert sum(m["posterior_mass"]) == pytest.approx(1.0)


@pytest.mark.slow
def test_the_frozen_and_the_dynamic_baseline_agree_at_the_first_step(inputs, tmp_path):
    frozen, dynamic = (
        run(settings(inputs, tmp_path / name, steps=2, warm_start="none", **changes)).read_metrics()
        for name, changes in (("frozen", {}), ("dynamic", DYNAMIC))
    )
    # New rows of the vocabulary take a little probability, so b_t differs in a late digit.
    assert dynamic[0]["informative"] == pytest.approx(frozen[0]["informative"], rel=0.02)
    assert dynamic[1]["loss"] != frozen[1]["loss"]


@pytest.mark.slow
def test_a_file_beside_a_dynamic_baseline_is_said_not_to_be_read(inputs, tmp_path):
    config = settings(inputs, tmp_path / "r", steps=1, baseline_policy="dynamic")
    folder, said = RunFolder(config.out), []
    with folder.writer():
        setup = prepare(config, folder, said.append, no_bar)
    assert setup.cache is None and any("b.h5 is not read" in line for line in said)


@pytest.mark.slow
def test_an_ablation_trains_like_the_uniform_loss(inputs, tmp_path):
    plain = run(settings(inputs, tmp_path / "plain", steps=6, weighting="uniform"))
    for ablation in ("scalar-baseline", "token-baseline"):
        other = run(
            settings(inputs, tmp_path / ablation, steps=6, weighting="token", ablation=ablation)
        )
        for one, two in zip(plain.read_metrics(), other.read_metrics(), strict=True):
            assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
            assert two["mutual_information"] == pytest.approx(one["mutual_information"], abs=1e-5)
            assert two["loss"] < one["loss"]


@pytest.mark.slow
def test_several_tokens_a_latent_are_plain_vocabulary(inputs, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run(settings(inputs, tmp_path / "r", steps=3, latent_tokens=2))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder.model),
        AutoTokenizer.from_pretrained(folder.model),
    )
    prompt = tokenizer(
        "<bos> <x> w0 w1 </x> <z> <z2.0> <z2.1> </z> <y>",
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert prompt["input_ids"].tolist() == [[1, 4, 10, 11, 5, 8, 34, 35, 9, 6]]
    assert model.generate(**prompt, max_new_tokens=20, do_sample=False).shape[1] > 10
    loaded, encoder, _ = load_run(folder, device="cpu", precision="fp32", attention="sdpa")
    assert (
        loaded.latent_ids_KP.tolist() == [[30, 31], [32, 33], [34, 35]]
        and encoder.latent_section == 4
    )


@pytest.mark.slow
def test_training_says_which_condition_holds_and_what_to_do(inputs, tmp_path):
    # no row has so much mass
    config = settings(inputs, tmp_path / "r", steps=12, tau=1e6, warm_start="none")
    folder, said = RunFolder(config.out), []
    with folder.writer():
        setup = prepare(config, folder, silent, no_bar)
        folder.begin(config)
        for _ in trainer.fit(setup, said.append):
            pass
    assert [line.split(":")[:2] for line in said] == [
        ["step 5", " degenerate weights"],
        ["step 12", " degenerate weights"],
    ]
    assert "twcli inspect" in said[0] and "--weighting uniform" in said[0]


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_number(inputs, tmp_path):
    plain, saving = (
        run(
            settings(inputs, tmp_path / name, steps=6, execution="plain", gradient_checkpointing=on)
        ).read_metrics()
        for name, on in (("plain", False), ("saving", True))
    )
    for one, two in zip(plain, saving, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5) and two[
            "gradient_norm"
        ] == pytest.approx(one["gradient_norm"], rel=1e-4)


def test_accumulated_batches_are_one_batch(inputs, tmp_path):
    """The mean over records, not of batches' means: batches of unequal
    size count by their records.
    """
    config = settings(inputs, tmp_path / "r", steps=1, accumulate=3, warm_start="none")
    folder = RunFolder(config.out)
    with folder.writer():
        setup = prepare(config, folder, silent, no_bar)
        trainer.begin(setup)
        rows = next(
            trainer.batches(
                setup.course,
                0,
                lambda stage, rows: batch_sampler_of(config, setup.encoded, stage, rows),
                np.arange(0),
                np.arange(len(setup.encoded)),
                accumulate=3,
            )
        )[1]
        assert len(set(map(len, rows))) > 1
        batch = trainer.collate(np.concatenate(rows), setup.encoded, setup.encoder, setup.cache)
        setup.model.section_width = setup.course.section_width(0)
        loss_B, _ = step_loss(setup.model(batch), batch, config, None)
        (metrics,) = trainer.fit(setup, silent)
    assert metrics["records"] == sum(map(len, rows))
    assert metrics["loss"] == pytest.approx(loss_B.mean().item(), rel=1e-5)
