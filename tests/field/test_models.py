"""What people's own models are like: position embeddings that depend on the pass, families with
shapes of their own, damaged, quantised and adapted checkpoints. Each as a command meets it.
"""

import json
import math
import random
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from tests.conftest import (
    SPECIALS,
    WORDS,
    encode,
    make_model,
    make_records,
    make_tokenizer,
    write_jsonl,
)
from twcli.cli.main import main
from twcli.data.batches import BatchSampler, forward_batches, length_classes
from twcli.data.padding import PassLengths
from twcli.errors import UserError
from twcli.models import loading
from twcli.models.checks import check_model
from twcli.models.forward import hidden_states
from twcli.models.generation import generate, router_probabilities
from twcli.models.positions import pass_lengths
from twcli.storage.cache import Cache

SIZES = {
    "vocab_size": len(SPECIALS) + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
BOUNDARY = 24


def longrope():
    """Phi-3 style: short factors up to 24 tokens, long ones beyond."""
    torch.manual_seed(0)
    config = Phi3Config(
        **SIZES,
        max_position_embeddings=128,
        original_max_position_embeddings=BOUNDARY,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.0, 1.0, 1.0],
            "long_factor": [4.0, 8.0, 2.0, 3.0],
        },
    )
    return Phi3ForCausalLM(config).eval()


def dynamic():
    """Other frequencies for each length beyond 24 tokens, up to 96."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES,
        max_position_embeddings=BOUNDARY,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    )
    return LlamaForCausalLM(config).eval()


def both_sides(prompts=8):
    """Two completions a prompt; z-free rows, and those with the latent section, lie on both sides
    of the boundary, at it, and within the section's length of it.
    """
    rng = random.Random(0)
    records = []
    for p in range(prompts):
        x = " ".join(rng.choices(WORDS, k=1 + p))
        for tokens in (BOUNDARY - 4 + p, BOUNDARY + 6 - p):  # with the template's 7
            y = " ".join(rng.choices(WORDS, k=max(1, tokens - 7 - (1 + p))))
            records.append({"x": x, "y": y})
    return records


def saved(model, folder, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return str(folder)


def run(*call, ok=True):
    result = CliRunner().invoke(main, [str(part) for part in call])
    assert not ok or result.exit_code == 0, result.output
    return result


def train(common, baseline, out, *more):
    """Two steps with two latents."""
    flags = ["--baseline", baseline, "--latents", 2, "--steps", 2, *more]
    return run("train", *common, *flags, "--out", out)


def refused(*call):
    """The one line of a refusal."""
    result = run(*call, ok=False)
    lines = [line for line in result.output.splitlines() if line.startswith("twcli:")]
    assert result.exit_code == 2 and len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0]


def read_alone(make, records, tokenizer):
    """b_t of each record, by a fresh model for each, so that nothing of another row can act."""
    nll = []
    for record in records:
        text = f"<bos> <x> {record['x']} </x> <y> {record['y']} </y> <eos>"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        first = ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<y>"))
        with torch.no_grad():
            logits = make()(ids, use_cache=False).logits[0, first:-2]
        nll.append(
            torch.nn.functional.cross_entropy(logits, ids[0, first + 1 : -1], reduction="none")
        )
    return [values.numpy() for values in nll]


def scores_each_row_as_alone(model, records, common, out):
    """`precompute` writes to `out` what the model gives of each record by itself."""
    run("precompute", *common, "--out", out)
    alone = read_alone(lambda: model, records, make_tokenizer())
    with Cache(out) as cache:
        for row, values in enumerate(alone):
            assert np.abs(cache.read(np.array([row]))[0] - values).max() < 1e-4


# positions that depend on the pass


@pytest.mark.slow
@pytest.mark.parametrize("make", [longrope, dynamic])
@pytest.mark.parametrize("execution", ["auto", "plain"])
def test_b_t_is_that_of_the_row_read_alone(make, execution, tmp_path):
    model, records = saved(make(), tmp_path / "model"), both_sides()
    data = write_jsonl(tmp_path / "d.jsonl", records)
    common = ["--model", model, "--data", data, "--device", "cpu"]
    cache = tmp_path / "b.h5"
    run("precompute", *common, "--out", cache, "--execution", execution)
    alone = read_alone(make, records, make_tokenizer())
    lengths = [len(values) + len(r["x"].split()) for values, r in zip(alone, records, strict=True)]
    assert min(lengths) < BOUNDARY - 6 < max(lengths)  # on both sides, or nothing is tested
    with Cache(cache) as stored:
        for row, values in enumerate(alone):
            assert np.abs(stored.read(np.array([row]))[0] - values).max() < 1e-4
    training = [
        *common,
        "--baseline",
        cache,
        "--latents",
        2,
        "--steps",
        3,
        "--execution",
        execution,
    ]
    trained = run("train", *training, "--out", tmp_path / "run")
    assert "rows checked, mean difference" in trained.output
    if execution == "auto":
        run("eval", "--run", tmp_path / "run", "--data", data, "--device", "cpu", "--json")


@pytest.mark.slow
@pytest.mark.parametrize("make", [longrope, dynamic])
@pytest.mark.parametrize("execution", ["plain", "branches", "tree", "auto"])
def test_what_the_latents_say_of_a_row_does_not_depend_on_its_batch(
    make, execution, tmp_path, encoder
):
    from twcli.data.batches import collate
    from twcli.models.latents import LatentModel
    from twcli.models.positions import forget_earlier_passes

    backbone = make()
    forget_earlier_passes(backbone)
    encoded = encode(encoder, both_sides(), max_length=96)
    # any ids will do for latents
    model = LatentModel(backbone, [[20], [21], [22]], "shared").eval()
    model.execution = execution
    classes = length_classes(encoded, encoder, pass_lengths(backbone))
    batches = forward_batches(
        encoded,
        np.arange(len(encoded)),
        batch_tokens=500,
        branches=4,
        shared=True,
        classes=classes,
    )
    assert any(len(rows) > 1 for rows in batches)
    for rows in batches:
        with torch.no_grad():
            together = model(collate(rows, encoded, encoder, None))
        for place, row in enumerate(rows):
            batch = collate(np.array([row]), encoded, encoder, None)
            ids = batch.latent_BL.clone()
            ids[0, batch.slot_B[0]] = 21
            first, S = int(batch.latent_first_B[0]), batch.targets_BS.shape[1]
            with torch.no_grad():
                logits = make()(ids).logits[0, first : first + S]
            wanted = torch.nn.functional.cross_entropy(
                logits, batch.targets_BS[0], reduction="none"
            )
            assert torch.allclose(together.nll_BCS[place, 1, :S], wanted, atol=1e-4)


@pytest.mark.parametrize("make", [longrope, dynamic])
def test_greedy_completions_do_not_depend_on_the_other_prompts(make, encoder):
    """They cross the boundary at different times."""
    model = make()
    from twcli.models.positions import forget_earlier_passes

    forget_earlier_passes(model)
    prompts = [encoder.prompt(" ".join(WORDS[i : i + 3 + 4 * i])) for i in range(5)]
    how = {"max_new_tokens": 24, "temperature": 0.0, "seed": 0, "batch_tokens": 4096}
    together, _ = generate(model, encoder, prompts, **how)
    alone = [generate(model, encoder, [prompt], **how)[0][0] for prompt in prompts]
    assert together == alone and len(set(alone)) > 1
    router = router_probabilities(model, encoder, prompts, [[20], [21]], batch_tokens=4096)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            logits = make()(torch.tensor([prompt])).logits[0, -1, [20, 21]]
        assert np.abs(router[row] - logits.softmax(-1).numpy()).max() < 1e-5


def test_the_sampler_keeps_classes_apart_and_all_rows():
    rng = np.random.default_rng(0)
    lengths, prompts = rng.integers(5, 60, 300), rng.integers(0, 80, 300)
    for rule in (PassLengths((24,)), PassLengths((24, 40)), PassLengths((), 30)):
        classes = rule.classes(lengths)
        sampler = BatchSampler(lengths, prompts, batch_tokens=200, seed=[0], classes=classes)
        batches = sampler.epoch(0)
        assert sorted(np.concatenate(batches)) == list(range(300))
        assert all(len(set(classes[rows])) == 1 for rows in batches)
        # a row can grow by `limits` - 1 tokens within its class
        limits = np.minimum(rule.new_tokens(lengths), 10**6)
        grown = limits[limits < 10**6]
        assert (rule.classes(lengths + limits - 1) == classes)[limits < 10**6].all() and len(grown)
        assert (rule.classes(lengths + limits) != classes)[limits < 10**6].all()
    assert not PassLengths() and not PassLengths().classes(lengths).any()


# families


@pytest.mark.slow
def test_a_model_that_is_its_own_base_model(tmp_path):
    """Llama 4's text model names a prefix that it does not have."""
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    config = AutoConfig.for_model(
        "llama4_text",
        **sizes,
        intermediate_size=32,
        intermediate_size_mlp=64,
        head_dim=8,
        num_local_experts=2,
        max_position_embeddings=128,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model.base_model is model
    records = make_records(4, 2)
    source, data = saved(model, tmp_path / "m"), write_jsonl(tmp_path / "d.jsonl", records)
    common = ["--model", source, "--data", data, "--device", "cpu"]
    scores_each_row_as_alone(model, records, common, tmp_path / "b.h5")
    train(common, tmp_path / "b.h5", tmp_path / "run")


@pytest.mark.parametrize("family", ["bloom", "gptj", "gpt_oss", "gemma2"])
def test_attention_that_a_family_lacks_is_replaced_and_said(family, tmp_path):
    torch.manual_seed(0)
    sizes = {
        "bloom": {"vocab_size": 30, "hidden_size": 32, "n_layer": 1, "n_head": 4},
        "gptj": {
            "vocab_size": 30,
            "n_embd": 32,
            "n_layer": 1,
            "n_head": 4,
            "n_positions": 64,
            "rotary_dim": 4,
        },
        "gpt_oss": {
            **SIZES,
            "head_dim": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "max_position_embeddings": 64,
            "num_hidden_layers": 1,
            "layer_types": ["full_attention"],
        },
        "gemma2": {**SIZES, "head_dim": 8, "max_position_embeddings": 64},
    }[family]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    said = []
    loaded = loading.load_model(saved(model, tmp_path / "m"), say=said.append)
    if not model._supports_sdpa:
        assert said == [f"{tmp_path}/m: the model has no sdpa attention; eager attention is taken"]
        assert loaded.config._attn_implementation == "eager"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings", "packed"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, True),
        ("mamba", {"state_size": 4}, False),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, False),
    ],
)
def test_mixtures_and_state_space_models_train_and_say_where_packing_is_off(
    family, settings, packed, tmp_path
):
    torch.manual_seed(0)
    sizes = SIZES
    if family == "mamba":
        sizes = {k: v for k, v in SIZES.items() if "attention" not in k and "key" not in k}
        sizes.pop("intermediate_size")
    config = AutoConfig.for_model(family, **{**sizes, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    records = make_records(4, 2)
    source, data = saved(model, tmp_path / "m"), write_jsonl(tmp_path / "d.jsonl", records)
    common = ["--model", source, "--data", data, "--device", "cpu"]
    said = run("precompute", *common, "--out", tmp_path / "b.h5").output
    training = ["--baseline", tmp_path / "b.h5", "--latents", 2, "--steps", 2]
    said += run("train", *common, *training, "--out", tmp_path / "run").output
    assert ("execution: plain, which computes the prompt again" in said) != packed
    assert ("each completion is scored with its prompt, and padded: it has" in said) != packed
    alone = read_alone(lambda: model, records, make_tokenizer())
    with Cache(tmp_path / "b.h5") as cache:
        for row, values in enumerate(alone):
            assert np.abs(cache.read(np.array([row]))[0] - values).max() < 1e-4


STREAMS = {
    "head_dim": 8,
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "vocab_size_per_layer_input": SIZES["vocab_size"],
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0, 0.0],
    "altup_num_inputs": 3,
}
PATTERN = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LATENT_ATTENTION = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
# what is particular of each: streams between layers, layers without positions, a recurrence,
# compressed keys and values, a router that is a linear layer which gives three things
NEWER = {
    "gemma3n_text": STREAMS,
    "smollm3": {"no_rope_layers": [1, 0]},
    "qwen3_5_text": {**PATTERN, **DELTA},
    "deepseek_v3": LATENT_ATTENTION,
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def tiny(family):
    torch.manual_seed(0)
    settings = {**SIZES, "max_position_embeddings": 128, **NEWER[family]}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()


@pytest.mark.parametrize("family", NEWER)
def test_layers_of_newer_families_have_a_state_for_each_token(family):
    """Features of a row do not depend on what stands beside it, nor on where it stands."""
    model = tiny(family)
    ids = torch.randint(8, SIZES["vocab_size"], (4, 9))
    with torch.no_grad():
        _, together = hidden_states(model, ids, all_layers=True)
        alone = [hidden_states(model, ids[row : row + 1], all_layers=True)[1] for row in range(4)]
    assert len(together) > 1
    for layer, states in enumerate(together):
        assert states.shape == (4, 9, SIZES["hidden_size"])
        for row in range(4):
            assert torch.allclose(states[row], alone[row][layer][0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3n_text", "phimoe"])
def test_newer_families_train_with_lora(family, tmp_path):
    pytest.importorskip("peft")
    model, records = tiny(family), make_records(4, 2)
    source, data = saved(model, tmp_path / "m"), write_jsonl(tmp_path / "d.jsonl", records)
    common = ["--model", source, "--data", data, "--device", "cpu"]
    scores_each_row_as_alone(model, records, common, tmp_path / "b.h5")
    train(common, tmp_path / "b.h5", tmp_path / "run", "--adapt", "lora")
    before, after = (load_file(tmp_path / f"{f}/model.safetensors") for f in ("m", "run/model"))
    changed = {name for name, values in after.items() if not torch.equal(values, before[name])}
    assert any("q_proj" in name for name in changed)
    if family == "phimoe":
        assert not [name for name in changed if "router" in name or name.endswith("gate.weight")]


# checks


def test_a_weight_that_is_not_finite_is_named_before_anything_is_written(tmp_path):
    source = saved(make_model(), tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = math.nan
    weights["model.layers.1.mlp.up_proj.weight"][4, 0] = math.inf
    save_file(weights, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    data = write_jsonl(tmp_path / "d.jsonl", make_records())
    call = ["--model", source, "--data", data, "--device", "cpu", "--out", tmp_path / "b.h5"]
    line = refused("precompute", *call)
    assert "weights model.layers.1.mlp.up_proj.weight hold 2 values that are not finite" in line
    assert "the first at [3, 5]; the checkpoint is damaged" in line
    assert not list(tmp_path.glob("b.h5*"))


def broken(forward):
    """A tiny model whose forward pass over (R, T, H) embeddings is changed."""
    model = make_model()
    model.model.embed_tokens.register_forward_hook(lambda _m, _i, output: forward(output))
    return model


def weights_of(change):
    """A change of a checkpoint by one of its weights' names to tensors."""

    def changed(folder):
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def config_of(**settings):
    def changed(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    return changed


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


LAYER = "model.layers.1.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def file_of(name, change):
    """A change of the bytes of a file."""

    def changed(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return changed


def in_parts(change=lambda _index, _parts: None):
    """The weights in several files, and a change of the index's path and theirs."""

    def changed(folder):
        (folder / "model.safetensors").unlink(missing_ok=True)
        make_model().save_pretrained(folder, max_shard_size="20KB")
        change(folder / "model.safetensors.index.json", sorted(folder.glob("model-*")))

    return changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "line"),
    [
        # transformers would give it random values, others at each loading
        (
            weights_of(lambda weights: {k: v for k, v in weights.items() if k != LAYER}),
            f"the weights lack {LAYER}; the checkpoint is incomplete",
        ),
        (
            weights_of(lambda weights: {k: v for k, v in weights.items() if "layers.1" not in k}),
            "and 8 more; the checkpoint is incomplete",
        ),
        (config_of(intermediate_size=48), "are of size (32, 64), and by its config.json they are"),
        (weights_of(lambda w: {k: 0 * v for k, v in w.items()}), "its logits are all equal"),
        (config_of(model_type="own", auto_map={}), "it needs code of its own, which is not run"),
        (without_tokenizer, "holds no tokenizer (tokenizer.json); copy that of the model there"),
        # files
        (file_of("config.json", lambda b: b""), "config.json:1: not valid JSON; copy it again"),
        (
            file_of("config.json", lambda b: b"\xef\xbb\xbf" + b),
            "config.json:1: not valid JSON; save it as UTF-8 without a byte order mark",
        ),
        (file_of("config.json", lambda b: b"[]"), "config.json: must hold one JSON object, found"),
        (file_of("tokenizer.json", lambda b: b[:60]), "tokenizer.json:4: not valid JSON; copy it"),
        (file_of("generation_config.json", lambda b: b"{"), "generation_config.json:1: not valid"),
        (
            lambda folder: (folder / "chat_template.jinja").write_bytes(b"{{ \xff }}"),
            "chat_template.jinja: byte 4 is not UTF-8; save it as UTF-8",
        ),
        (
            file_of("model.safetensors", lambda b: b[:-100]),
            "model.safetensors: is cut off or damaged (Error while deserializing header",
        ),
        (
            file_of("model.safetensors", lambda _: POINTER.encode()),
            "model.safetensors: is a pointer of Git LFS, which stands for the file; fetch it with",
        ),
        (
            in_parts(lambda _, parts: parts[1].unlink()),
            "model-00002-of-00006.safetensors: is not there, and model.safetensors.index.json",
        ),
        (
            in_parts(lambda _, parts: parts[1].write_bytes(b"")),
            "model-00002-of-00006.safetensors: is cut off or damaged",
        ),
        (
            in_parts(lambda index, _: index.unlink()),
            "holds 6 files of weights and no model.safetensors.index.json, which says what is in",
        ),
        (in_parts(lambda i, _: i.write_text("{")), "index.json:1: not valid JSON; copy it again"),
        # settings
        (config_of(num_hidden_layers=0), "config.json: num_hidden_layers is 0; give a model with"),
        (config_of(is_encoder_decoder=True), "config.json: a llama model has an encoder and a dec"),
        (config_of(hidden_act="own"), 'its config.json has hidden_act "own", which transformers'),
        (config_of(dtype="float7"), "config.json: module 'torch' has no attribute 'float7'"),
        (
            config_of(num_attention_heads=5),
            "'validate_architecture': ValueError: The hidden size (32) is not a multiple",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "no usable tokenizer: 'added_tokens' is missing",
        ),
    ],
)
def test_what_is_missing_or_of_something_else_is_named(change, line, tmp_path, data_file):
    source = saved(make_model(), tmp_path / "m")
    change(tmp_path / "m")
    call = ["--model", source, "--data", data_file, "--device", "cpu"]
    assert line in refused("precompute", *call, "--out", tmp_path / "b.h5")
    assert line in refused("sample", *call)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "is an address; give the name, Qwen/Qwen3-0.6B"),
        ("hf.co/Qwen/Qwen3-0.6B/", "is an address; give the name, Qwen/Qwen3-0.6B"),
        ("https://example.com/model", "no such folder here, and it cannot be a name on the hub"),
        ("Qwen/Qwen3-0.6B@main", "it cannot be a name on the hub, which is OWNER/NAME"),
        ("m ", "it cannot be a name on the hub"),
        ("m/model.safetensors", "is a file; give the model's folder, or a .gguf file"),
        ("m/config.json", "is a file; give the model's folder"),
    ],
)
def test_what_is_no_model_says_what_to_give(name, line, tmp_path, data_file, monkeypatch):
    saved(make_model(), tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    call = ["--model", name, "--data", data_file, "--device", "cpu"]
    said = refused("precompute", *call, "--out", tmp_path / "b.h5")
    assert said.startswith(f"twcli: {name}: ") and line in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"output_attentions": True, "output_hidden_states": True}, {"return_dict": False}]
)
def test_what_a_checkpoint_asks_of_each_pass_does_not_matter(settings, tmp_path, data_file):
    """With attention weights asked for, the model could not be saved after the training."""
    source = saved(make_model(), tmp_path / "m")
    config_of(**settings)(tmp_path / "m")
    common = ["--model", source, "--data", data_file, "--device", "cpu"]
    run("precompute", *common, "--out", tmp_path / "b.h5")
    train(common, tmp_path / "b.h5", tmp_path / "run")
    run("sample", "--run", tmp_path / "run", "--x", "w0", "--latent", 1, "--device", "cpu")


def test_a_second_form_of_the_weights_does_not_matter(tmp_path, data_file):
    """Mistral's models have consolidated.safetensors as well, which may not have been fetched."""
    source = saved(make_model(), tmp_path / "m")
    (tmp_path / "m" / "consolidated.safetensors").write_text(POINTER)
    call = ["precompute", "--model", source, "--data", data_file, "--device", "cpu"]
    assert CliRunner().invoke(main, [*call, "--out", str(tmp_path / "b.h5")]).exit_code == 0


def test_weights_in_parts_are_read_and_those_without_a_place_are_said(tmp_path, data_file):
    source = saved(make_model(), tmp_path / "m")
    call = ["precompute", "--model", source, "--data", data_file, "--device", "cpu"]
    whole = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "a.h5")])
    in_parts()(tmp_path / "m")
    parts = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "b.h5")])
    assert (whole.exit_code, parts.exit_code) == (0, 0)
    one, other = (Cache(tmp_path / name) for name in ("a.h5", "b.h5"))
    rows = np.arange(one.rows)
    assert np.array_equal(one.read(rows)[0], other.read(rows)[0])
    config_of(num_hidden_layers=1)(tmp_path / "m")
    fewer = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "c.h5")])
    said = " ".join(fewer.stderr.split())
    assert "has no place for the weights model.layers.1.input_layernorm.weight and 8 more" in said


@pytest.mark.parametrize(
    ("forward", "line"),
    [
        (lambda e: e * math.inf, "its weights are finite and its logits are not"),
        (lambda e: e + e.mean(1, keepdim=True), "a llama model is not causal here"),
        (lambda e: e + e.mean(0, keepdim=True)[:, :1], "depend on the other rows of its batch"),
    ],
)
def test_a_model_that_breaks_an_assumption_is_refused(forward, line):
    check_model(make_model(), "m")
    with pytest.raises(UserError, match=f"^m: .*{line}") as caught:
        check_model(broken(forward), "m")
    assert "take" in str(caught.value)  # what to do


def test_the_checks_are_quick_and_leave_no_trace():
    import time

    model = make_model(hidden=64, layers=4)
    state = torch.get_rng_state()
    check_model(model, "m")
    start = time.process_time()
    check_model(model, "m")
    assert time.process_time() - start < 0.5
    assert torch.equal(state, torch.get_rng_state())


def test_an_encoder_is_refused_before_anything_is_written(tmp_path):
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    bert = BertLMHeadModel(BertConfig(**sizes)).eval()
    data = write_jsonl(tmp_path / "d.jsonl", make_records())
    call = ["--model", saved(bert, tmp_path / "m"), "--data", data, "--device", "cpu"]
    assert "a bert model is not causal here" in refused(
        "precompute", *call, "--out", tmp_path / "b.h5"
    )
    assert not list(tmp_path.glob("b.h5*"))


# special tokens beyond the embeddings


@dataclass
class Beyond:
    source: str
    token: str = "<image>"


@pytest.fixture
def beyond(tmp_path):
    """Gemma-3-1b style: the tokenizer has one special token more than the model has rows."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, False)
    assert tokenizer.convert_tokens_to_ids("<image>") == len(SPECIALS) + len(WORDS)
    return Beyond(saved(make_model(), tmp_path / "m", tokenizer))


@pytest.mark.slow
def test_a_special_token_without_a_row_is_fine_where_no_text_becomes_it(beyond, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", make_records(4, 2))
    common = ["--model", beyond.source, "--data", data, "--device", "cpu"]
    run("precompute", *common, "--out", tmp_path / "b.h5")
    train(common, tmp_path / "b.h5", tmp_path / "run")
    run("eval", "--run", tmp_path / "run", "--data", data, "--device", "cpu", "--json")


def test_a_word_without_a_row_is_refused_where_it_occurs(beyond, encoder):
    encoder.token_rows.embedded = len(SPECIALS) + len(WORDS) - 1
    records = [{"x": WORDS[0], "y": WORDS[1]}, {"x": WORDS[2], "y": WORDS[-1]}]
    with pytest.raises(UserError, match=r"data.jsonl:2: field 'y' contains w19, for which the mod"):
        encode(encoder, records)


def test_a_vocabulary_of_another_model_is_refused(tmp_path, data_file):
    tokenizer = make_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["more"] = len(SPECIALS) + len(WORDS)
    source = saved(make_model(), tmp_path / "m", tokenizer)
    (tmp_path / "m/tokenizer.json").write_text(json.dumps(state))
    line = refused("precompute", "--model", source, "--data", data_file, "--out", tmp_path / "b.h5")
    assert "largest id is 30, the model has 30 embeddings" in line and "take the tokenizer" in line


# quantised and half-precision checkpoints


def quantise(folder, block=16):
    """Makes the checkpoint one in fp8, with a scale for each block of 16 x 16 weights."""
    path, stored = Path(folder) / "model.safetensors", {}
    for name, weight in load_file(path).items():
        if "proj" not in name:
            stored[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.float().view(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3)) / 448
        values = (blocks / scale[:, None, :, None]).view(rows, columns)
        stored[name] = values.to(torch.float8_e4m3fn)
        stored[name.replace(".weight", ".weight_scale_inv")] = scale
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((Path(folder) / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
    }
    (Path(folder) / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize("quantised", [False, True])
def test_a_run_is_saved_in_the_dtype_of_its_checkpoint(quantised, tmp_path, data_file):
    source = saved(make_model().to(torch.bfloat16), tmp_path / "m")
    if quantised:
        quantise(source)
    common = ["--model", source, "--data", data_file, "--device", "cpu"]
    run("precompute", *common, "--out", tmp_path / "b.h5")
    trained = train(common, tmp_path / "b.h5", tmp_path / "run")
    assert (
        f"weights: stored in bfloat16, trained in float32; {tmp_path}/run/model will be in "
        "bfloat16 as well" in trained.output.replace("\n", " ")
    )
    stored = load_file(tmp_path / "run/model/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert not [name for name in stored if "scale" in name]
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    _, told = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model", output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]
    run("eval", "--run", tmp_path / "run", "--data", data_file, "--device", "cpu", "--json")


def test_weights_that_were_quantised_are_of_one_dtype(tmp_path):
    source = saved(make_model().to(torch.bfloat16), tmp_path / "m")
    before = dict(make_model().named_parameters())
    quantise(source)
    model = loading.load_model(source)
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32
        assert (weight - before[name]).abs().max() < 0.1


# adapters


@pytest.fixture
def adapted(tmp_path):
    """(folder of the model, folder of an adapter on it, logits of both together)."""
    peft = pytest.importorskip("peft")
    model = make_model()
    saved(model, tmp_path / "base")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    with warnings.catch_warnings():  # peft uses a deprecated name of transformers
        warnings.simplefilter("ignore", FutureWarning)
        adapter = peft.get_peft_model(model, config)
    adapter.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "base")
    path.write_text(json.dumps(settings))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        return tmp_path / "base", tmp_path / "adapter", ids, adapter(ids).logits


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_is_merged_into_its_model(adapted, beside, tmp_path, data_file):
    base, folder, ids, logits = adapted
    if beside:
        for path in base.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    said = []
    model = loading.load_model(str(folder), say=said.append)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, logits, atol=1e-5)
        assert not torch.allclose(make_model()(ids).logits, logits, atol=1e-2)
    (line,) = said
    assert "holds an adapter, which is merged" in line and ("remove" in line) == beside
    common = ["--model", folder, "--data", data_file, "--device", "cpu"]
    run("precompute", *common, "--out", tmp_path / "b.h5")
    for adapt in ("full", "lora"):
        train(common, tmp_path / "b.h5", tmp_path / adapt, "--adapt", adapt)


def test_an_adapter_that_cannot_be_used_says_why_before_anything_is_written(
    adapted, tmp_path, data_file
):
    _, folder, *_ = adapted
    call = ["--model", folder, "--data", data_file, "--device", "cpu", "--out", tmp_path / "b.h5"]
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    weights = (folder / "adapter_model.safetensors").read_bytes()

    (folder / "adapter_model.safetensors").unlink()
    assert "but no adapter_model.safetensors; add the adapter's" in refused("precompute", *call)
    (folder / "adapter_model.safetensors").write_bytes(weights)

    path.write_text(json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "gone")}))
    assert "which is not there; set base_model_name_or_path" in refused("precompute", *call)
    path.write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    assert "names no model; set base_model_name_or_path" in refused("precompute", *call)
    other = saved(make_model(hidden=64), tmp_path / "other")
    path.write_text(json.dumps({**settings, "base_model_name_or_path": other}))
    assert "cannot be merged into" in refused("precompute", *call)
    assert not list(tmp_path.glob("b.h5*"))
