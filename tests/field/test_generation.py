"""Completions of families whose caches are not those of attention: states, convolutions, none at
all. They are those of the plain forward pass, whatever stands beside a prompt.
"""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma4TextConfig

from tests.conftest import WORDS, encode, make_model, make_records, make_tokenizer, write_jsonl
from tests.field.test_models import SIZES, read_alone, run, saved
from twcli.errors import UserError
from twcli.kernels.head import head_logits
from twcli.models import generation
from twcli.models.baseline import score_flat
from twcli.models.checks import check_model
from twcli.models.drawing import Request, draw
from twcli.models.forward import hidden_states, keeps_state
from twcli.models.generation import generate, why_not_cached
from twcli.models.new_rows import grow_embeddings

FAMILIES = {
    # layers of states, convolutions and attention
    "lfm2": {**SIZES, "layer_types": ["conv", "full_attention"]},
    "bamba": {**SIZES, "mamba_n_heads": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "recurrent_gemma": {
        **SIZES,
        "lru_width": 32,
        "block_types": ["recurrent", "attention"],
        "w_init_variance_scale": 1.0,
        "tie_word_embeddings": False,
        "attention_window_size": 16,
    },
    # states and keys in one layer
    "falcon_h1": {**SIZES, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    # of states alone
    "jamba": {
        **SIZES,
        "mamba_d_state": 4,
        "num_experts": 2,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
    },
    "mamba": {
        "vocab_size": SIZES["vocab_size"],
        "hidden_size": 32,
        "state_size": 4,
        "num_hidden_layers": 2,
        "initializer_range": 0.5,
    },
    # a transform before the LM head
    "modernbert-decoder": {**SIZES, "layer_types": ["full_attention", "sliding_attention"]},
    # no cache, and positions that begin with the padding
    "openai-gpt": {
        "vocab_size": SIZES["vocab_size"],
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    },
    "llama": {**SIZES, "head_dim": 8},
}


def tiny(family, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **more})
    return AutoModelForCausalLM.from_config(config).eval()


def written_plainly(model, prompt, count, ends):
    """Greedy ids, each from a pass over all that is before it."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_completions_are_those_of_the_plain_forward_pass(family, encoder):
    model = tiny(family)
    prompts = [encoder.prompt(" ".join(WORDS[i : i + 1 + 3 * i])) for i in range(5)]
    how = {"max_new_tokens": 9, "temperature": 0.0, "seed": 0, "batch_tokens": 4096}
    written, _ = generation.generate_ids(model, encoder, prompts, **how)
    expected = [written_plainly(model, p, 9, encoder.ends) for p in prompts]
    for ids, plain in zip(written, expected, strict=True):
        assert ids[: len(plain)] == plain and not any(ids[len(plain) :])
    assert len({tuple(plain) for plain in expected}) > (family != "recurrent_gemma")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_draws_that_share_their_prompt_are_as_well(family, encoder):
    model = tiny(family)
    prompts = [encoder.prompt(" ".join(WORDS[i : i + 2 + 5 * i])) for i in range(2)]
    sections = np.array([[[8 + k, 12 + g] for k in range(2)] for g in range(2)])
    rows = np.array([(g, k) for g in range(2) for k in range(2) for _ in range(3)])
    asked = Request(prompts, sections, rows[:, 0], rows[:, 1], 5 + np.arange(len(rows)) % 3)
    texts, _ = draw(model, encoder, asked, temperature=0.0, seed=0, batch_tokens=4096)
    for row, text in enumerate(texts):
        plain = written_plainly(model, asked.ids(row), asked.limit_R[row], encoder.ends)
        assert text == encoder.decode(plain)


@pytest.mark.slow
def test_a_model_without_a_usable_cache_draws_from_its_distribution(encoder):
    model = tiny("jamba")
    prompt = encoder.prompt("w1 w2")
    assert "generation from a cache" in why_not_cached(model, encoder, [prompt])
    how = {"max_new_tokens": 1, "temperature": 1.0, "seed": 0, "batch_tokens": 10**5}
    texts, _ = generate(model, encoder, [prompt] * 4000, **how)
    with torch.no_grad():
        shares = model(torch.tensor([prompt]), use_cache=False).logits[0, -1].softmax(-1)
    for word in WORDS[:5]:
        share = float(shares[encoder.tokenizer.convert_tokens_to_ids(word)])
        assert abs(texts.count(word) / 4000 - share) < 5 * np.sqrt(share / 4000)


def test_a_cache_is_used_where_it_is_right(encoder):
    assert why_not_cached(make_model(), encoder, [encoder.prompt("w1")]) is None


def test_limits_hold_and_rows_end_without_a_cache(encoder, monkeypatch):
    monkeypatch.setattr(generation, "why_not_cached", lambda *_: "because")
    model = make_model()
    prompts = [encoder.prompt(WORDS[i]) for i in range(8)]
    how = {"temperature": 1.0, "seed": 3, "batch_tokens": 4096}
    limits = np.arange(1, 9)
    ids, ended = generation.generate_ids(model, encoder, prompts, max_new_tokens=limits, **how)
    assert 0 < sum(ended) < 8
    for row, limit, end in zip(ids, limits, ended, strict=True):
        assert end or len(row) == limit
        assert len(row) <= limit and end == encoder.ended(row)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["jamba", "lfm2", "modernbert-decoder"])
def test_every_command_takes_it(family, tmp_path):
    records = make_records(4, 2)
    source, data = saved(tiny(family), tmp_path / "m"), write_jsonl(tmp_path / "d.jsonl", records)
    common = ["--data", data, "--device", "cpu"]
    drawn = run("sample", "--model", source, *common, "--max-new-tokens", 4)
    slowly = "without a KV cache" in drawn.output
    assert slowly == (family == "jamba")
    run("precompute", "--model", source, *common, "--out", tmp_path / "b.h5")
    training = ["--baseline", tmp_path / "b.h5", "--latents", 2, "--steps", 2]
    run("train", "--model", source, *common, *training, "--out", tmp_path / "run")
    run("sample", "--run", tmp_path / "run", *common, "--latent", "all", "--max-new-tokens", 4)
    judged = ["--samples", 4, "--judge", "exact", "--max-new-tokens", 4, "--json"]
    run("eval", "--run", tmp_path / "run", *common, *judged)
    run("export", "--run", tmp_path / "run", "--to", "hf", "--out", tmp_path / "hf")


# what lies between the last states and the logits


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("recurrent_gemma", {"logits_soft_cap": 0.7}),
        ("xlstm", {"output_logit_soft_cap": 0.7}),
        ("hyperclovax", {"logits_scaling": 3.0}),
        ("granite", {"logits_scaling": 3.0}),
        ("modernbert-decoder", {}),
    ],
)
def test_logits_are_scaled_as_the_family_does(family, settings):
    FAMILIES.setdefault(family, SIZES)
    if family == "xlstm":
        FAMILIES[family] = {
            "vocab_size": SIZES["vocab_size"],
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_heads": 2,
        }
    model = tiny(family, **settings)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        found = head_logits(model, hidden_states(model, ids))
        assert torch.allclose(found, model(ids, use_cache=False).logits, atol=1e-5)
    check_model(model, "m")


def test_a_soft_cap_of_an_unknown_name_is_found_although_the_logits_are_small():
    """Of logits below 1 a cap at 30 takes 3.7e-4, less than what passes of other shapes differ."""
    model = make_model(initializer=0.02)
    head = model.lm_head
    model.forward = _capped(model)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        hidden = hidden_states(model, ids)
        apart = (head(hidden) - model.forward(input_ids=ids).logits).norm() / head(hidden).norm()
    assert apart < 1e-3
    with pytest.raises(UserError, match="computes its logits from its last hidden states"):
        check_model(model, "m")


def _capped(model):
    plain = type(model).forward

    def forward(*inputs, **settings):
        output = plain(model, *inputs, **settings)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    return forward


# modules that keep what they computed


def test_b_t_is_right_where_modules_keep_states_and_passes_could_run_at_once(encoder):
    model = tiny("recurrent_gemma")
    assert keeps_state(model) and not keeps_state(make_model())
    records = make_records(20, 2)
    encoded = encode(encoder, records)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        flat = score_flat(model, encoder, encoded, np.arange(len(encoded)), batch_tokens=100)
    finally:
        torch.set_num_threads(threads)
    alone = np.concatenate(read_alone(lambda: model, records, make_tokenizer()))
    assert np.abs(flat - alone).max() < 1e-5


# tables with a row for each token


def test_tables_of_whole_numbers_grow_with_the_vocabulary():
    model = make_model()
    table = torch.arange(60).reshape(30, 2)
    model.model.register_buffer("experts", table.clone())
    grow_embeddings(model, 33)
    assert torch.equal(model.model.experts, torch.cat([table, table[:3]]))
    assert model.config.vocab_size == 33


def test_heads_may_differ_between_layers():
    from twcli.kernels.flash import head_size

    sizes = {**SIZES, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 2}
    per_layer = {"vocab_size_per_layer_input": SIZES["vocab_size"], "num_kv_shared_layers": 0}
    config = Gemma4TextConfig(
        **sizes, **per_layer, layer_types=["sliding_attention", "full_attention"]
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert head_size(model) == 16 and head_size(make_model()) == 8
