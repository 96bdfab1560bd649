"""On a GPU: the kernels give what their definition does, and every command what it gives elsewhere.
Without one these are skipped.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import LlamaConfig

from tests import test_cli
from tests.conftest import encode, make_model, make_records, make_tokenizer, write_jsonl
from tests.kernels import test_flash
from tests.kernels.test_packing import SIZES, batch_of, build, everything, model_of
from tests.training import test_trainer
from tests.training.test_trainer import distinct, run, same, weights  # noqa: F401
from twcli.data.encoder import ExampleEncoder
from twcli.kernels import flash
from twcli.kernels.flash import Pieces
from twcli.kernels.packing import AUTO, BRANCHES, PLAIN
from twcli.models import baseline
from twcli.models.building import check_packing
from twcli.storage.cache import Cache

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def another_command():
    """In one process accelerate keeps the first one's device and precision."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("size", [8, 32, 64, 128])
def test_kernels_compute_what_is_written_out(size, heads, monkeypatch):
    torch.manual_seed(0)
    prompt_G, piece_S, behind_G = (
        torch.tensor([70, 1, 200]),
        torch.tensor([5, 130, 9, 33]),
        torch.tensor([135, 42, 0]),
    )
    N = int(prompt_G.sum() + piece_S.sum())
    pieces = {
        device: Pieces.of(
            prompt_G.to(device),
            piece_S.to(device),
            behind_G.to(device),
            prompt_tokens=271,
            longest_prompt=200,
            longest_piece=130,
            longest_behind=135,
            some_empty=False,
        )
        for device in ("cpu", "cuda")
    }
    tensors = [torch.randn(1, A, N, size).bfloat16() for A in (heads[0], heads[1], heads[1])]
    gradient = torch.randn(1, N, heads[0], size).bfloat16()

    def both(device, dtype):
        inputs = [x.to(device, dtype).requires_grad_() for x in tensors]
        output = pieces[device].attend(*inputs, size**-0.5)
        output.backward(gradient.to(output))
        return [x.detach().cpu() for x in (output, *(x.grad for x in inputs))]

    found = both("cuda", torch.bfloat16)
    monkeypatch.setattr(flash, "kernel", test_flash.kernel)
    monkeypatch.setattr(flash, "kernel_backward", test_flash.kernel_backward)
    for a, b in zip(found, both("cpu", torch.float64), strict=True):
        assert relative(a, b) < 1e-2


@pytest.mark.parametrize("posterior", ["shared", "separate"])
def test_bf16_with_kernels_is_off_from_float32_no_more_than_without(posterior):
    model, encoder = build(model_of(LlamaConfig(**{**SIZES, "num_hidden_layers": 4})), posterior)
    model.cuda()
    batch = batch_of(encoder, range(12), completions=3).to(model.backbone.device)
    _, exact = everything(model, batch)
    found = {}
    for model.execution in (PLAIN, BRANCHES):
        with torch.autocast("cuda", torch.bfloat16):
            assert flash.usable(model.backbone)
            _, gradients = everything(model, batch)
        found[model.execution] = relative(
            *(torch.cat([g[name].flatten() for name in exact]) for g in (gradients, exact))
        )
    assert found[BRANCHES] < 1.5 * found[PLAIN] < 0.2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_packed_executions_agree_with_plain(precision, monkeypatch):
    model, encoder = build(model_of(LlamaConfig(**SIZES)))
    model.cuda()
    calls, kernel = [], flash.kernel
    monkeypatch.setattr(flash, "kernel", lambda *args: calls.append(1) or kernel(*args))
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        assert check_packing(model, batch_of(encoder).to(model.backbone.device)) is None
    assert bool(calls) == (precision == torch.bfloat16)


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_b_t_depends_on_neither_device_nor_batches_nor_kernels(precision, tolerance):
    encoder = ExampleEncoder(make_tokenizer(), "tiny", 1)
    encoded = encode(encoder, make_records(40, 3))
    rows, model = np.arange(len(encoded)), make_model()
    expected = baseline.score_flat(model, encoder, encoded, rows, batch_tokens=300)
    model.to("cuda", precision)
    assert baseline.why_not_varlen(model, encoder, encoded) is None
    found = [
        baseline.score_flat(model, encoder, encoded, rows, batch_tokens=tokens, varlen=varlen)
        for tokens in (1, 300, 10**6)
        for varlen in (False, True)
    ]
    errors = [np.abs(f - expected).mean() for f in found]  # of every other one without kernels
    assert max(errors) < tolerance and max(errors[1::2]) < 1.5 * max(errors[::2]) + 1e-6
    assert np.array_equal(
        baseline.score_flat(model, encoder, encoded, rows, batch_tokens=300, varlen=True), found[3]
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "data.jsonl", make_records(20, 3))
    ok(
        "precompute",
        "--model",
        folder / "model",
        "--data",
        folder / "data.jsonl",
        "--out",
        folder / "b.h5",
        "--device",
        "cuda",
    )
    return folder


def ok(*arguments):
    AcceleratorState._reset_state(True)
    return test_cli.ok(*arguments)


settings = partial(test_trainer.settings, device="cuda")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"precision": "bf16", "warm_start": "none"},
        {"warm_start": "none", "latent_chunk": 1},
        {
            "precision": "bf16",
            "posterior": "separate",
            "baseline": None,
            "baseline_policy": "dynamic",
        },
        {"execution": PLAIN},
    ],
)
def test_the_same_seed_gives_the_same_numbers_also_after_a_kill(inputs, tmp_path, changes):
    whole = run(settings(inputs, tmp_path / "whole", **changes))
    again = run(settings(inputs, tmp_path / "again", **changes))
    assert again.read_metrics() == whole.read_metrics()
    assert same(weights(again), weights(whole))
    broken = settings(inputs, tmp_path / "broken", **changes)
    run(broken, 6)
    folder = run(broken)
    assert folder.read_metrics() == whole.read_metrics()
    assert same(weights(folder), weights(whole))


def test_training_begins_as_on_a_cpu(inputs, tmp_path):
    free = {"warm_start": "none"}  # clusters that tie may be numbered otherwise
    found = run(settings(inputs, tmp_path / "cuda", **free)).read_metrics()
    AcceleratorState._reset_state(True)
    expected = run(settings(inputs, tmp_path / "cpu", device="cpu", **free)).read_metrics()
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-3)
    assert found[0]["gradient_norm"] == pytest.approx(expected[0]["gradient_norm"], rel=1e-2)


def test_every_command_runs(inputs, tmp_path):
    for precision in ("fp32", "bf16"):
        cache, out = tmp_path / f"{precision}.h5", tmp_path / precision
        common = ["--device", "cuda", "--precision", precision]
        ok(
            "precompute",
            "--model",
            inputs / "model",
            "--data",
            inputs / "data.jsonl",
            "--out",
            cache,
            *common,
        )
        assert Cache(str(cache)).rows == 60
        ok(
            "train",
            "--model",
            inputs / "model",
            "--data",
            inputs / "data.jsonl",
            "--baseline",
            cache,
            "--latents",
            3,
            "--steps",
            6,
            "--out",
            out,
            *common,
        )
        figures = json.loads(
            ok("eval", "--run", out, "--data", inputs / "data.jsonl", "--json", *common).stdout
        )
        assert 1 <= figures["posterior"]["usage"] <= 3.001
        ok(
            "sample",
            "--run",
            out,
            "--data",
            inputs / "data.jsonl",
            "--out",
            tmp_path / f"{precision}.jsonl",
            "-n",
            2,
            *common,
        )
        assert len((tmp_path / f"{precision}.jsonl").read_text().splitlines()) >= 20


def test_auto_takes_the_kernels(monkeypatch):
    model, encoder = build(model_of(LlamaConfig(**SIZES)))
    model.cuda()
    calls, kernel = [], flash.kernel
    monkeypatch.setattr(flash, "kernel", lambda *args: calls.append(1) or kernel(*args))
    model.execution, batch = AUTO, batch_of(encoder).to(model.backbone.device)
    model(batch)
    assert not calls  # in float32 there are none
    with torch.autocast("cuda", torch.bfloat16):
        model(batch)
    assert calls
