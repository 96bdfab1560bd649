import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import encode, make_model, make_records
from twcli.kernels import linear as module
from twcli.kernels.linear import fast_linear, linear
from twcli.models.baseline import score_flat


@pytest.fixture
def counted(monkeypatch):
    """Shapes of the inputs that oneDNN was given."""
    seen, call = [], module._by_onednn
    assert module._usable(torch.float32) or module.platform.machine() not in module.X86
    monkeypatch.setattr(
        module,
        "_by_onednn",
        lambda x, weight, bias: seen.append(tuple(x.shape)) or call(x, weight, bias),
    )
    return seen


needs_onednn = pytest.mark.skipif(not module._usable(torch.float32), reason="no x86 processor")


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (1, 300, 64), (2, 3, 5, 64), (1000, 257)])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_products_are_those_of_torch(shape, biased, counted):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(33, shape[-1])
    bias = torch.randn(33) if biased else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    strided = x.transpose(0, -2).contiguous().transpose(0, -2)
    for given, matrix in (
        (x, weight),
        (strided, weight.t().contiguous().t()),
        (x, weight.repeat(2, 1)[33:]),
    ):
        found = linear(given, matrix, bias)
        assert found.shape == exact.shape and found.dtype == torch.float32
        assert (found - exact).abs().max() <= 4 * (
            F.linear(x, weight, bias) - exact
        ).abs().max() + 1e-6
    assert len(counted) == 3


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (1, 300, 64), (2, 3, 5, 64), (1000, 257)])
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_are_those_of_torch(shape, biased, counted, monkeypatch):
    monkeypatch.setattr(module, "_half_used", lambda: True)
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(33, shape[-1])
    bias = torch.randn(33) if biased else None
    direction = torch.randn(*shape[:-1], 33)

    def gradients(call, dtype, direction):
        given = [
            t if t is None else t.to(dtype, copy=True).requires_grad_() for t in (x, weight, bias)
        ]
        call(*given).backward(direction.to(dtype))
        return [t.grad for t in given if t is not None]

    for backward in (direction, torch.ones(()).expand(direction.shape)):
        exact = gradients(F.linear, torch.float64, backward)
        torchs = gradients(F.linear, torch.float32, backward)
        ours = gradients(linear, torch.float32, backward)
        for found, other, right in zip(ours, torchs, exact, strict=True):
            assert found.shape == right.shape
            assert (found - right).abs().max() <= 4 * (other - right).abs().max() + 1e-5
    assert len(counted) == 2 * 3
    counted.clear()
    linear(x, weight.requires_grad_(), bias).sum().backward()
    assert len(counted) == 2 and x.grad is None  # nobody wants the gradient of x


@pytest.mark.parametrize(
    ("vendor", "capability", "ours"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_which_processors_train_by_onednn(vendor, capability, ours, monkeypatch, tmp_path):
    if vendor is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(module, "PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    module._half_used.cache_clear()
    assert module._half_used() is ours
    monkeypatch.undo()
    module._half_used.cache_clear()


def test_with_a_gradient_and_in_other_precisions_torch_computes(counted, monkeypatch):
    monkeypatch.setattr(module, "_half_used", lambda: False)
    x, weight = torch.randn(3, 8), torch.randn(5, 8, requires_grad=True)
    linear(x, weight).sum().backward()
    assert torch.allclose(weight.grad, x.sum(0).expand(5, 8), atol=1e-5)
    with torch.no_grad():
        assert linear(x.double(), weight.double()).dtype == torch.float64
        assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
        assert linear(x[:0], weight).shape == (0, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
    assert not counted


@needs_onednn
@pytest.mark.parametrize("pack", [False, True])
@torch.no_grad()
def test_layers_are_as_before_once_it_ends(pack, counted):
    model = make_model()
    ids = torch.arange(10)[None]
    plain = model(ids).logits
    with fast_linear(model, pack=pack):
        with fast_linear(model, pack=not pack), pytest.raises(ValueError, match="within"):
            raise ValueError("within")
        assert torch.allclose(model(ids).logits, plain, atol=1e-4)
    assert len(counted) == 2 * 7 + 1  # every product of two layers and the head
    assert torch.equal(model(ids).logits, plain) and len(counted) == 2 * 7 + 1
    assert not any("forward" in vars(layer) for layer in model.modules())


@needs_onednn
@torch.no_grad()
def test_weights_are_copied_where_there_are_few(counted, monkeypatch):
    packed, call = [], module._packed
    monkeypatch.setattr(module, "_packed", lambda weight: packed.append(weight) or call(weight))
    model = make_model()
    ids = torch.arange(10)[None]
    plain, layers = model(ids).logits, 2 * 7 + 1
    weights = sum(m.weight.numel() for m in model.modules() if type(m) is torch.nn.Linear)
    for most, copies in ((weights, layers), (weights - 1, 0)):
        monkeypatch.setattr(module, "MOST_PACKED", most)
        with fast_linear(model, pack=True):
            assert torch.allclose(model(ids).logits, plain, atol=1e-4)
        assert len(packed) == copies and len(counted) == layers
        packed.clear(), counted.clear()
    double = make_model().double()
    monkeypatch.setattr(module, "MOST_PACKED", weights)
    with fast_linear(double, pack=True):
        double(ids)
    with fast_linear(model):
        model(ids)
    assert not packed


@needs_onednn
@torch.no_grad()
def test_layers_that_are_more_than_their_weights_stay(counted):
    class Twice(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = make_model()
    model.lm_head.__class__ = Twice
    own = model.model.layers[0].mlp.up_proj.forward = lambda x: torch.zeros(*x.shape[:-1], 64)
    ids = torch.arange(10)[None]
    plain = model(ids).logits
    with fast_linear(model):
        assert torch.allclose(model(ids).logits, plain, atol=1e-4)
    assert len(counted) == 2 * 7 - 1 and model.model.layers[0].mlp.up_proj.forward is own


def test_a_compiled_model_stays(counted):
    model = make_model()
    model.model._compiled_call_impl = model.model._call_impl
    with torch.no_grad(), fast_linear(model):
        model(torch.arange(10)[None])
    assert not counted


@needs_onednn
def test_b_t_is_read_by_onednn(encoder, counted, monkeypatch):
    model, encoded, packed = make_model(), encode(encoder, make_records()), []
    monkeypatch.setattr(module, "_packed", lambda weight: packed.append(weight) or weight)
    rows = np.arange(len(encoded))
    fast = score_flat(model, encoder, encoded, rows, batch_tokens=64, varlen=True)
    assert counted and len(packed) == 2 * 7 + 1  # each once
    exact = copy.deepcopy(model).double()
    assert np.allclose(
        fast, score_flat(exact, encoder, encoded, rows, batch_tokens=64, varlen=True), atol=1e-4
    )
    counted.clear()
    model(torch.arange(10)[None]).logits.sum().backward()
    assert not counted  # nor in a pass outside it


needs_bf16 = pytest.mark.skipif(
    not module._usable(torch.bfloat16), reason="no products in bf16 on this processor"
)


@needs_bf16
def test_b_t_in_bf16_is_read_with_weights_that_were_reordered_once(encoder, counted, monkeypatch):
    model, encoded, packed = make_model(), encode(encoder, make_records()), []
    rows = np.arange(len(encoded))
    exact = score_flat(model, encoder, encoded, rows, batch_tokens=64, varlen=True)
    reorder = module._packed
    monkeypatch.setattr(module, "_packed", lambda weight: packed.append(1) or reorder(weight))
    counted.clear()
    rounded = copy.deepcopy(model).bfloat16()
    ours = score_flat(rounded, encoder, encoded, rows, batch_tokens=64, varlen=True)
    assert len(packed) == 2 * 7 + 1 and len(counted) >= 2 * 7
    monkeypatch.setattr(module, "_usable", lambda _dtype: False)
    theirs = score_flat(rounded, encoder, encoded, rows, batch_tokens=64, varlen=True)
    assert 0 < np.abs(ours - exact).mean() <= 1.2 * np.abs(theirs - exact).mean() + 1e-3


@needs_bf16
@torch.no_grad()
def test_products_in_bf16_are_those_of_torch_only_with_reordered_weights(counted):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size).bfloat16() for size in ((2, 9, 64), (33, 64), (33,)))
    expected = F.linear(x.double(), weight.double(), bias.double())
    found = linear(x, weight, bias, packed=module._packed(weight))
    assert len(counted) == 1 and found.dtype == torch.bfloat16
    off = (F.linear(x, weight, bias).double() - expected).abs().max()
    assert (found.double() - expected).abs().max() <= 2 * off
    linear(x, weight, bias)
    assert len(counted) == 1


def test_a_torch_without_it_computes_as_ever(monkeypatch):
    def gone(*_inputs):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(module, "_by_onednn", gone)
    module._usable.cache_clear()
    try:
        x, weight = torch.randn(3, 8), torch.randn(5, 8)
        with torch.no_grad():
            assert torch.equal(linear(x, weight), F.linear(x, weight))
        monkeypatch.setattr(
            module, "_by_onednn", lambda x, weight, bias: F.linear(x, weight, bias) + 1
        )
        module._usable.cache_clear()
        assert not module._usable(torch.float32)
    finally:
        monkeypatch.undo()
        module._usable.cache_clear()
