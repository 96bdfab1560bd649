"""Loading: GGUF files as transformers reads them. Work on several cores at once."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.conftest import make_model, make_records, write_jsonl
from twcli.errors import UserError
from twcli.models import baseline, loading

HIDDEN, LAYERS, HEADS = 64, 1, 4
WORDS = [
    "<|endoftext|>",
    "<s>",
    "</s>",
    *(chr(c) for c in range(97, 123)),
    "\u0120",
    *(str(d) for d in range(10)),
    "w0",
    "w1",
]


def write_gguf(path):
    """A tiny random Llama with a byte-level tokenizer, weights in float32."""
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["w 0", "w 1"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    block = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN, HIDDEN),
        "attn_v": (HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (HIDDEN, HIDDEN),
        "ffn_up": (HIDDEN, HIDDEN),
        "ffn_down": (HIDDEN, HIDDEN),
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
    }
    shapes = {
        "token_embd": (len(WORDS), HIDDEN),
        "output": (len(WORDS), HIDDEN),
        "output_norm": (HIDDEN,),
    }
    shapes |= {
        f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in block.items()
    }
    for name, shape in shapes.items():
        writer.add_tensor(
            f"{name}.weight",
            (0.3 * rng.standard_normal(shape) + (len(shape) == 1)).astype(np.float32),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_a_gguf_file_is_a_model_that_can_be_saved_and_loaded(tmp_path, capfd):
    source = write_gguf(tmp_path / "tiny.gguf")
    model, encoder = loading.load_model(source), loading.load_encoder(source)
    loading.fit_vocabulary(model, encoder)
    assert encoder.added == ["<x>", "</x>", "<y>", "</y>", "<z>", "</z>"]
    ids = torch.tensor([encoder.prompt("w0 w1")])
    assert ids.max() < model.get_input_embeddings().num_embeddings
    model.save_pretrained(tmp_path / "again")
    encoder.tokenizer.save_pretrained(tmp_path / "again")
    again = loading.load_model(str(tmp_path / "again"))
    assert torch.allclose(model(ids).logits, again(ids).logits, atol=1e-6)
    assert loading.load_encoder(str(tmp_path / "again")).prompt("w0 w1") == ids[0].tolist()
    assert "Converting" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_from_a_gguf_file(tmp_path, precision):
    from click.testing import CliRunner

    from twcli.cli.main import main

    source = write_gguf(tmp_path / "tiny.gguf")
    records = [
        {"x": r["x"].replace("w", "a"), "y": r["y"].replace("w", "b")} for r in make_records(6, 2)
    ]
    common = [
        "--model",
        source,
        "--data",
        write_jsonl(tmp_path / "d.jsonl", records),
        "--device",
        "cpu",
    ]
    baseline = ["--baseline", f"{tmp_path}/b.h5"]
    for call in (
        ["precompute", *common, "--precision", precision, "--out", f"{tmp_path}/b.h5"],
        ["train", *common, *baseline, "--latents", "2", "--steps", "2", "--out", f"{tmp_path}/run"],
    ):
        result = CliRunner().invoke(main, call)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_a_gguf_file_is_parsed_once_for_tokenizer_configuration_and_weights(tmp_path, monkeypatch):
    """It takes longer than its weights do. Outside, the package is as it was."""
    source = write_gguf(tmp_path / "tiny.gguf")
    theirs, read = loading.gguf_reading.once, []
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: read.append(path) or reader(path))
    counting = gguf.GGUFReader
    model, _ = loading.load_frozen(source)
    assert len(read) == 1 and gguf.GGUFReader is counting

    monkeypatch.setattr(loading.gguf_reading, "once", nullcontext)
    plain, _ = loading.load_frozen(source)
    assert len(read) == 4
    assert baseline.weights_hash(model) == baseline.weights_hash(plain)
    monkeypatch.setattr(loading.gguf_reading, "once", theirs)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(UserError, match=r"bad\.gguf: cannot be loaded"):
        loading.load_model(str(tmp_path / "bad.gguf"))
    assert gguf.GGUFReader is counting


def test_no_such_gguf_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.gguf: no such file"):
        loading.load_model(str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(UserError, match=r"bad\.gguf: cannot be loaded"):
        loading.load_model(str(tmp_path / "bad.gguf"))


def test_rows_of_added_tags_are_the_mean_of_what_spells_them(tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf")
    model, encoder = loading.load_model(source), loading.load_encoder(source)
    old = model.get_input_embeddings().num_embeddings
    loading.fit_vocabulary(model, encoder)
    # the frozen model goes without <z> and </z>
    assert model.get_input_embeddings().num_embeddings == old + 4
    loading.fit_vocabulary(model, encoder, section=True)
    rows = model.get_input_embeddings().weight
    assert len(rows) == old + 6
    tag = encoder.tokenizer.convert_tokens_to_ids("</z>")
    assert torch.allclose(rows[tag], rows[encoder.spelling("</z>")].mean(0), atol=1e-6)


FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_families_in_a_chat_frame_from_b_t_to_a_saved_run(family, tmp_path):
    """b_t is what the family's own forward pass says, and its run loads with plain transformers."""
    from click.testing import CliRunner
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.conftest import make_tokenizer
    from twcli.cli.main import main
    from twcli.storage.cache import Cache

    sizes = (
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        }
        if family != "gpt2"
        else {}
    )
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=30,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.3,
        **{**sizes, **FAMILIES[family]},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}w19 {{ m['content'] }} <eos> {% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    records = make_records(4, 2)
    common = [
        "--model",
        str(tmp_path / "model"),
        "--data",
        write_jsonl(tmp_path / "d.jsonl", records),
        "--template",
        "chat",
        "--device",
        "cpu",
    ]
    for call in (
        ["precompute", *common, "--out", f"{tmp_path}/b.h5"],
        [
            "train",
            *common,
            "--baseline",
            f"{tmp_path}/b.h5",
            "--latents",
            "2",
            "--steps",
            "2",
            "--out",
            f"{tmp_path}/run",
        ],
    ):
        result = CliRunner().invoke(main, call)
        assert result.exit_code == 0, result.output
    with Cache(tmp_path / "b.h5") as cache:
        for row, record in enumerate(records):
            text = f"<bos> w19 {record['x']} <eos> w19 {record['y']} <eos>"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            stored, (length,) = cache.read(np.array([row]))
            logits = model(ids).logits[0, -length - 1 : -1].detach()
            wanted = torch.nn.functional.cross_entropy(logits, ids[0, -length:], reduction="none")
            assert np.abs(stored - wanted.numpy()).max() < 1e-4
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert again.get_input_embeddings().num_embeddings == 32


def test_rows_beyond_the_keys_of_sparse_attention_are_too_long():
    model = make_model()
    whole = loading.context_length(model, None)
    model.config.index_topk = 16
    assert whole > 16 and loading.context_length(model, None) == 16
    assert loading.context_length(model, 12) == 12
    with pytest.raises(UserError, match="context holds 16 tokens"):
        loading.context_length(model, 17)
