"""Prompts read once: the same losses and gradients as sequence by sequence, and
refused where they would not be.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    RecurrentGemmaConfig,
)

from tests.conftest import (
    SPECIALS,
    WORDS,
    encode,
    in_double,
    make_model,
    make_records,
    make_tokenizer,
)
from twcli.data.batches import collate, drop_history
from twcli.data.encoder import ExampleEncoder
from twcli.kernels import packing
from twcli.kernels.costs import cheapest
from twcli.kernels.packing import AUTO, BRANCHES, PLAIN, TREE, Packed, why_not_packed
from twcli.models.building import check_packing, choose_execution
from twcli.models.latents import LatentModel
from twcli.models.new_rows import add_latent_rows

VOCABULARY = len(SPECIALS) + len(WORDS)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


def build(backbone, posterior="shared", tokens=1, dynamic=False, latents=3):
    encoder = ExampleEncoder(make_tokenizer(), "tiny", tokens)
    encoder.add_latents(latents)
    ids = encoder.latent_ids(latents)
    add_latent_rows(backbone, ids, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = LatentModel(backbone, ids, posterior, dynamic_baseline=dynamic)
    if model.head is not None:
        torch.nn.init.normal_(model.head.outer.weight, std=0.5)
    return model, encoder


def batch_of(encoder, rows=(0, 1, 2, 5, 6), completions=2):
    """Two rows share a prompt, the others have prompts and completions of other lengths."""
    return collate(np.array(rows), encode(encoder, make_records(8, completions)), encoder, None)


def model_of(config, seed=0):
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def everything(model, batch, latent_B=None, with_posterior=True):
    """What a pass gives, and the gradient of a loss in which every branch
    and term has its own weight.
    """
    output = model(batch, latent_B, with_posterior=with_posterior)
    weight_C = torch.arange(1, 1 + output.nll_BCS.shape[1], device=output.nll_BCS.device)
    loss = (output.nll_BCS.sum(-1) * weight_C).sum() + output.log_router_BK[:, 0].sum()
    if output.log_posterior_BK is not None:
        loss = loss + output.log_posterior_BK[:, 1].sum()
    model.zero_grad()
    loss.backward()
    return output, {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize("execution", [BRANCHES, TREE])
@pytest.mark.parametrize(
    ("posterior", "dynamic", "tokens", "one", "read"),
    [
        ("shared", False, 1, False, True),
        ("shared", True, 2, False, True),
        ("separate", True, 1, False, True),
        ("exact", True, 1, False, True),
        ("shared", False, 1, True, True),
        ("shared", False, 2, True, False),
        ("separate", False, 1, True, True),
    ],
)
def test_packed_equals_plain_in_every_reading(execution, posterior, dynamic, tokens, one, read):
    model, encoder = build(in_double(make_model()), posterior, tokens, dynamic)
    model.double()
    batch = drop_history(batch_of(encoder), 0.3, np.random.default_rng(0), encoder.pad)
    latent_B = torch.tensor([2, 0, 1, 1, 2]) if one else None
    expected, gradients = everything(model, batch, latent_B, read)
    model.execution = execution
    found, others = everything(model, batch, latent_B, read)
    for name in ("nll_BCS", "log_router_BK", "log_posterior_BK", "baseline_BS"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-10, atol=1e-10), name
    assert found.sequences == expected.sequences
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("execution", [BRANCHES, TREE])
@pytest.mark.parametrize("rows", [(6, 0, 4, 2), (8, 6, 4, 2, 0), (7, 6, 1, 0), (0, 2, 4), (5,)])
def test_rows_may_stand_in_any_order(execution, rows):
    """Also where each has a prompt of its own, but not in the order in
    which prompts are numbered.
    """
    model, encoder = build(in_double(make_model()))
    model.double()
    batch = batch_of(encoder, rows)
    expected, gradients = everything(model, batch)
    model.execution = execution
    found, others = everything(model, batch)
    assert torch.allclose(found.nll_BCS, expected.nll_BCS, rtol=1e-10, atol=1e-10)
    assert torch.allclose(found.log_posterior_BK, expected.log_posterior_BK, rtol=1e-10, atol=1e-10)
    assert all(
        torch.allclose(others[name], gradient, rtol=1e-9, atol=1e-10)
        for name, gradient in gradients.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("execution", [PLAIN, BRANCHES, TREE])
@pytest.mark.parametrize(("posterior", "chunk"), [("shared", 1), ("exact", 2), ("separate", 2)])
def test_chunks_of_latents_give_the_same_gradient(execution, posterior, chunk):
    model, encoder = build(in_double(make_model()), posterior, dynamic=True)
    model.double()
    batch = batch_of(encoder)
    expected, gradients = everything(model, batch)
    model.execution, model.latent_chunk = execution, chunk
    found, others = everything(model, batch)
    assert torch.allclose(found.nll_BCS, expected.nll_BCS, rtol=1e-10, atol=1e-10)
    assert torch.allclose(found.log_router_BK, expected.log_router_BK, rtol=1e-10)
    assert all(
        torch.allclose(others[name], gradient, rtol=1e-9, atol=1e-10)
        for name, gradient in gradients.items()
    )


def test_a_chunk_at_a_time_is_in_memory():
    """What autograd keeps for the backward pass does not grow with K."""
    kept = []
    for latents in (2, 16):
        model, encoder = build(make_model(), latents=latents)
        model.latent_chunk, sizes = 1, []
        batch = batch_of(encoder)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            output = model(batch, with_posterior=False)
        kept.append(sum(sizes))
        assert output.nll_BCS.shape[1] == latents
    assert kept[1] < 1.1 * kept[0] + 16 * batch.active_BS.numel() * 4


@pytest.mark.parametrize("execution", [BRANCHES, TREE])
def test_single_precision_agrees_to_1e_5(execution):
    model, encoder = build(model_of(LlamaConfig(**SIZES)))  # grouped heads too
    batch = batch_of(encoder, range(12))
    expected, gradients = everything(model, batch)
    model.execution = execution
    found, others = everything(model, batch)
    assert (found.nll_BCS - expected.nll_BCS).norm() <= 1e-5 * expected.nll_BCS.norm()
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_the_prompt_of_several_completions_is_read_once():
    model, encoder = build(make_model())
    batch = batch_of(encoder, range(12), completions=4)
    read = []
    model.backbone.base_model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    model.execution = BRANCHES
    model(batch)
    prompts, length = len(np.unique(batch.prompt_B)), int(batch.plain_first_B.max())
    assert prompts == 3
    padded = prompts * length + 12 * (3 + 1) * (batch.active_BS.shape[1] + model.section)
    real = (
        batch.plain_first_B[batch.leader_G].sum()
        + (4 * batch.active_BS.sum(1) + 3 * model.section + 1).sum()
    )
    assert read == [real] and real < 0.9 * padded


def test_a_branch_sees_neither_its_neighbours_nor_padding():
    model, encoder = build(make_model())
    encoded = encode(encoder, make_records(8, 2))
    model.execution = TREE
    together = model(collate(np.arange(16), encoded, encoder, None))
    for execution in (PLAIN, BRANCHES, TREE):
        model.execution = execution
        for row in (0, 5, 15):
            alone = model(collate(np.array([row]), encoded, encoder, None))
            length = alone.nll_BCS.shape[2]
            assert torch.allclose(alone.nll_BCS[0], together.nll_BCS[row, :, :length], atol=2e-5)
            assert torch.allclose(
                alone.log_posterior_BK[0], together.log_posterior_BK[row], atol=2e-5
            )


GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        Qwen3Config(**SIZES, head_dim=8),
        MistralConfig(**SIZES, sliding_window=4096),
        GPT2Config(**GPT2, **NO_DROPOUT),
    ],
    ids=lambda c: c.model_type,
)
def test_architectures_that_share(config):
    model, encoder = build(model_of(config))
    assert check_packing(model, batch_of(encoder)) is None
    assert model.execution == PLAIN


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (GPT2Config(**GPT2), "dropout"),
        (Gemma2Config(**SIZES, head_dim=8), "capped"),
        (
            MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
            "layers of linear_attention",
        ),
        (
            RecurrentGemmaConfig(
                **{k: v for k, v in SIZES.items() if k != "initializer_range"}, lru_width=32
            ),
            "recurrent|replaced|layers",
        ),
        (
            BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
            "replaced|dropout",
        ),
    ],
    ids=lambda c: getattr(c, "model_type", ""),
)
def test_architectures_that_do_not_are_refused(config, why):
    model, encoder = build(transformers.AutoModelForCausalLM.from_config(config).eval())
    reason = check_packing(model, batch_of(encoder))
    assert reason is not None
    assert any(word in reason for word in why.split("|")), reason


def test_a_model_that_mixes_neighbours_unseen_is_caught_by_the_check():
    """A convolution written by hand passes every test of the architecture, and gives
    itself away in the numbers.
    """
    backbone = make_model()
    layer = backbone.model.layers[0].mlp
    whole = layer.forward
    layer.forward = lambda hidden: whole(hidden + 0.5 * hidden.roll(1, dims=1))
    model, encoder = build(backbone)
    assert why_not_packed(backbone) is None
    assert "execution differs by" in check_packing(model, batch_of(encoder))


def test_a_model_that_breaks_under_packing_is_caught_by_the_check():
    backbone = make_model()

    def refuse(_module, _args, inputs):
        if "packed" in inputs:
            raise TypeError("unexpected keyword")

    backbone.model.register_forward_pre_hook(refuse, with_kwargs=True)
    model, encoder = build(backbone)
    assert (
        check_packing(model, batch_of(encoder))
        == "its branches execution fails: unexpected keyword"
    )


def test_the_cheapest_execution_by_shape():
    llama = make_model(hidden=256, layers=1)

    def chosen(model, prompts, branches, share=1.0):
        return cheapest(
            model, prompts, branches, int(share * (math.prod(prompts) + math.prod(branches)))
        )

    assert chosen(llama, (4, 16), (4, 5, 50)) == BRANCHES  # little to copy
    assert chosen(llama, (1, 512), (1, 9, 32)) == TREE  # little to mask, much to copy
    assert chosen(llama, (1, 128), (1, 9, 256)) == BRANCHES
    assert chosen(llama, (4, 16), (4, 1, 48)) == PLAIN  # nothing is shared
    assert chosen(llama, (4, 16), (4, 1, 48), 0.6) != PLAIN  # but much is padding
    assert chosen(llama, (1, 16), (4, 1, 48)) != PLAIN  # four completions of one prompt
    mistral = model_of(MistralConfig(**SIZES, sliding_window=64))
    assert chosen(mistral, (1, 40), (1, 9, 24)) != PLAIN
    assert chosen(mistral, (1, 41), (1, 9, 24), 0.1) == PLAIN  # beyond the window


@pytest.mark.parametrize("wanted", [AUTO, BRANCHES, TREE])
def test_a_window_that_some_rows_do_not_fit_in_is_seen_before_them(wanted):
    model, encoder = build(model_of(MistralConfig(**SIZES, sliding_window=16)))
    said = []
    records = [{"x": "w1 w2", "y": f"w{i}"} for i in range(4)]
    choose_execution(model, wanted, encoder, encode(encoder, records), said.append)
    assert model.execution == wanted and not said
    model.execution = PLAIN
    encoded = encode(encoder, [*records, {"x": "w3 " * 10, "y": "w4 w5"}])
    choose_execution(model, wanted, encoder, encoded, said.append)
    if wanted == AUTO:
        model.execution = PLAIN
        batch = collate(np.arange(5), encoded, encoder, None)
        expected = model(batch).nll_BCS
        model.execution = AUTO
        assert torch.allclose(model(batch).nll_BCS, expected, atol=1e-5)
    else:
        assert (
            model.execution == PLAIN
            and "window holds 16 tokens, the longest sequence has" in said[0]
        )


@pytest.mark.parametrize("execution", [BRANCHES, TREE])
def test_padding_is_read_only_where_it_is_little(execution, monkeypatch):
    model, encoder = build(in_double(make_model()))
    model.double()
    model.execution, read, found = execution, [], {}
    model.backbone.base_model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    batch = batch_of(encoder)
    for dense in (0.95, 0.0):
        monkeypatch.setattr(packing, "DENSE", dense)
        found[dense] = everything(model, batch)
    assert read[0] < 0.8 * read[1]
    assert torch.allclose(found[0.95][0].nll_BCS, found[0.0][0].nll_BCS, rtol=1e-10, atol=1e-10)
    assert all(
        torch.allclose(found[0.95][1][name], gradient, rtol=1e-9, atol=1e-10)
        for name, gradient in found[0.0][1].items()
    )


def test_attention_is_put_back():
    model, encoder = build(make_model())
    model.execution = TREE
    batch = batch_of(encoder)
    model(batch)
    assert model.backbone.config._attn_implementation == "sdpa"
    broken = replace(batch, prompt_B=batch.prompt_B + 99)
    with pytest.raises((IndexError, RuntimeError)):
        model(broken)
    assert model.backbone.config._attn_implementation == "sdpa"


def test_values_of_another_size_than_the_keys_attend_too():
    """As in multi-head latent attention."""
    torch.manual_seed(0)
    heads = 3
    ids, lengths = torch.zeros(1, 5, dtype=torch.long), torch.tensor([5])
    query, key, value = (torch.randn(1, heads, 5 + 2 * 4, size) for size in (8, 8, 6))
    outputs = [
        Packed(
            ids,
            lengths,
            torch.tensor([0]),
            torch.zeros(1, 2, 4, dtype=torch.long),
            torch.full((1, 2), 4),
            form,
        ).attend(query, key, value, 0.4)
        for form in (BRANCHES, TREE)
    ]
    assert torch.allclose(*outputs, atol=1e-6) and outputs[0].shape == (1, 13, heads, 6)
