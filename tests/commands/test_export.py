"""`twcli export`: what it writes runs without this package and gives the run's own logits."""

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import huggingface_hub
import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from tests.conftest import encode, make_model, make_records, make_tokenizer, write_jsonl
from tests.test_cli import ok, refused, twcli
from twcli.commands.export import _largest_difference
from twcli.commands.export_config import ExportConfig
from twcli.commands.export_forms import FORMS, TOLERANCE, UNMERGED_TOLERANCE, Adapter, Merged
from twcli.data.encoder import ExampleEncoder
from twcli.data.names import write_names
from twcli.errors import UserError, WorkFailed
from twcli.models import gguf_file
from twcli.storage.run_folder import RunFolder

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}\n"
)
TRAIN = ("--baseline-policy", "dynamic", "--weighting", "token", "--warm-start", "none")
ASK = [{"role": "user", "content": "what is 2 + 2?"}]
PROMPT = "<|im_start|>user\nwhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"


def make_bytes_tokenizer(splitter=None):
    """Byte-level BPE, as the chat models of the Llama family have it."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = splitter or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["the user asks what that is, and the assistant answers", "what is that then"]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT,
    )


def make_chat_model(tokenizer, **settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        # rows beyond the tokenizer's, as many models have
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
        **settings,
    )
    return LlamaForCausalLM(config)


def make_run(folder, tokenizer, model, *flags):
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    ok(
        *("train", "--model", folder / "model", "--data", folder / "data.jsonl", "--latents", 3),
        *(*TRAIN, "--steps", 2, "--batch-tokens", 300, "--out", folder / "run", *flags),
    )


def make_chat_run(folder):
    """A run of a chat model, trained with LoRA."""
    records = [{"x": f"what is {p}", "y": f"{'ab'[c]} {p}"} for p in range(4) for c in range(2)]
    write_jsonl(folder / "data.jsonl", records)
    tokenizer = make_bytes_tokenizer()
    model = make_chat_model(tokenizer, tie_word_embeddings=True)
    make_run(folder, tokenizer, model, "--template", "chat", "--adapt", "lora", "--lr", 0.01)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A run that tests must not change."""
    folder = tmp_path_factory.mktemp("chat")
    make_chat_run(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A run of the word-level model, trained in full with the tags template."""
    folder = tmp_path_factory.mktemp("words")
    write_jsonl(folder / "data.jsonl", make_records(10, 2))
    make_run(folder, make_tokenizer(), make_model())
    return folder


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def asked(tokenizer, messages=ASK, **settings):
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **settings
    )


@pytest.mark.slow
def test_a_chat_model_as_a_merged_folder(chat, tmp_path):
    out = tmp_path / "out"
    result = ok("export", "--run", chat / "run", "--to", "hf", "--out", out, "--name", "2=code")
    assert "prompts are those of training, logits differ by 0.0e+00 at most" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    run = AutoModelForCausalLM.from_pretrained(chat / "run" / "model")
    model, tokenizer = (kind.from_pretrained(out) for kind in (AutoModelForCausalLM, AutoTokenizer))
    plain = AutoTokenizer.from_pretrained(chat / "run" / "model")
    for latent, k in ((0, 0), ("1", 1), ("code", 2)):
        ids = asked(tokenizer, latent=latent)
        assert ids == ids_of(plain, f"{PROMPT}<z><z{k}></z>")
        assert ids[-2] == plain.convert_tokens_to_ids(f"<z{k}>")
        assert asked(tokenizer, [{"role": "system", "content": f"latent: {latent}"}, *ASK]) == ids
        torch.testing.assert_close(logits(model, ids), logits(run, ids), atol=0, rtol=0)
    turns = [{"role": "system", "content": "be kind"}, *ASK, *ASK]
    whole = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in turns)
    assert asked(tokenizer, turns, latent=2) == ids_of(
        plain, whole + "<|im_start|>assistant\n<z><z2></z>"
    )
    settings = model.generation_config
    assert settings.eos_token_id in (2, [2])
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 1.0, 0)
    card = (out / "README.md").read_text()
    assert "| 2 | code |" in card and 'latent="code"' in card and "latent: code" in card


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # used by peft
def test_the_adapter_loads_with_plain_peft_and_gives_the_runs_logits(chat, tmp_path):
    out = tmp_path / "out"
    ok("export", "--run", chat / "run", "--to", "adapter", "--out", out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    run = AutoModelForCausalLM.from_pretrained(chat / "run" / "model")
    base = AutoModelForCausalLM.from_pretrained(chat / "model")
    sequences = [[*asked(tokenizer, latent=k), 60, 61, 62] for k in range(3)]
    before = [logits(base, ids) for ids in [sequences[0][:-6]]]
    # two tokens more than the rows that the base model has to spare
    assert len(tokenizer) > base.get_input_embeddings().num_embeddings
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for model in (
        PeftModel.from_pretrained(base, out),
        AutoPeftModelForCausalLM.from_pretrained(out),
    ):
        for ids in sequences:
            torch.testing.assert_close(logits(model, ids), logits(run, ids), atol=1e-4, rtol=0)
    # the training moved them by far more than the tolerance
    after = logits(run, sequences[0][:-6])[:, : before[0].shape[1]]
    assert (after - before[0]).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # used by peft
@pytest.mark.parametrize("kind", ["hf", "adapter", "gguf", "bfloat16", "base in gguf"])
def test_the_lines_of_the_card_load_the_folder_and_give_the_runs_logits(
    kind, chat, tmp_path, monkeypatch
):
    made = chat
    if kind in ("bfloat16", "base in gguf"):
        made = tmp_path
        records = [{"x": f"what is {p}", "y": f"{'ab'[c]} {p}"} for p in range(4) for c in range(2)]
        write_jsonl(made / "data.jsonl", records)
        tokenizer = make_bytes_tokenizer()
        model = make_chat_model(tokenizer, tie_word_embeddings=True)
        base = model.to(torch.bfloat16) if kind == "bfloat16" else model
        base.save_pretrained(made / "model")
        tokenizer.save_pretrained(made / "model")
        template = "chat"
        if kind == "base in gguf":
            template = made / "plain.jinja"  # the file's own takes a latent already
            template.write_text(CHAT)
            make_run(made, tokenizer, model, "--template", "chat", "--adapt", "full")
            ok("export", "--run", made / "run", "--to", "gguf", "--out", made / "base")
            model_file, run = made / "base" / "model.gguf", made / "of gguf"
        else:
            model_file, run = made / "model", made / "run"
        ok(
            *("train", "--model", model_file, "--data", made / "data.jsonl", "--latents", 3),
            *(*TRAIN, "--steps", 2, "--batch-tokens", 300, "--out", run),
            *("--template", template, "--adapt", "lora", "--lr", 0.01),
        )
    else:
        model_file, run = chat / "model", chat / "run"
    form = kind if kind in FORMS else "adapter"
    out = tmp_path / "out"
    ok("export", "--run", run, "--to", form, "--out", out)
    card = (out / "README.md").read_text()
    lines = card.split("```python\n")[1].split("messages = ")[0]
    commented = "# model = AutoPeftModelForCausalLM"
    assert (commented in lines) == (form == "adapter" and kind != "base in gguf")
    monkeypatch.chdir(model_file.parent)  # a card names no folder of this machine
    trained = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    for wording in {lines, lines.replace("# model = ", "model = ")}:
        wording = wording.replace("FOLDER", repr(str(out)))
        wording = wording.replace('"folder of the file"', repr(str(model_file.parent)))
        found = {}
        exec(wording, found)
        if kind == "bfloat16":  # the run's merged weights are rounded, the adapter is not
            merged = found["model"].merge_and_unload().to(torch.bfloat16)
            for mine, theirs in zip(merged.parameters(), trained.parameters(), strict=True):
                assert torch.equal(mine.float(), theirs)
            continue
        for k in range(3):
            ids = [*asked(found["tokenizer"], latent=k), 60, 61, 62]
            mine = logits(found["model"], ids)
            torch.testing.assert_close(mine, logits(trained, ids), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_an_adapter_of_an_adapter_is_refused(chat, tmp_path):
    made = chat / "run" / "config.yaml"
    shutil.copytree(chat / "run", tmp_path / "run")
    ok("export", "--run", chat / "run", "--to", "adapter", "--out", tmp_path / "first")
    settings = made.read_text().replace(f"model: {chat / 'model'}", f"model: {tmp_path / 'first'}")
    (tmp_path / "run" / "config.yaml").write_text(settings)
    refused(
        *("export", "--run", tmp_path / "run", "--to", "adapter", "--out", tmp_path / "out"),
        says=["first is itself an adapter", "give --to hf"],
    )


def test_rounding_is_distinguished_from_a_wrong_weight_by_the_size_of_the_logits(chat, tmp_path):
    """Logits of trained models reach 40, where adapter and merged weights differ by 2.5e-4."""
    config = ExportConfig(run=str(chat / "run"), to="adapter", out=str(tmp_path / "out"))
    theirs = torch.tensor([[43.5, -20.0], [3.0, 1.0]])
    rounding = torch.tensor([[2.5e-4, 0.0], [0.0, 0.0]])
    assert 2e-4 < _largest_difference(config, [theirs + rounding], [theirs], TOLERANCE) < 3e-4
    for wrong in (theirs + 5 * rounding, theirs * float("nan")):
        with pytest.raises(WorkFailed, match="more than the 9e-04 that rounding explains"):
            _largest_difference(config, [wrong], [theirs], TOLERANCE)
    with pytest.raises(WorkFailed, match="more than the 1e-04 that rounding explains"):
        _largest_difference(
            config, [theirs + rounding], [theirs], UNMERGED_TOLERANCE, relative=False
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # used by peft
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_gives_the_logits_of_the_model_that_was_trained(dtype, tmp_path, monkeypatch):
    """Those of the training's own model at its end, before it is merged: also where logits are
    large, and where the merged weights are rounded to half precision.
    """
    write_jsonl(
        tmp_path / "data.jsonl",
        [{"x": f"what is {p}", "y": f"{'ab'[c]} {p}"} for p in range(4) for c in range(2)],
    )
    tokenizer = make_bytes_tokenizer()
    model = make_chat_model(tokenizer, tie_word_embeddings=True)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 40  # logits of SmolLM2's size
    sequences = [[5 + 7 * k, 60, 61, 62, 90, 3 + k] for k in range(3)]
    trained = []
    save = RunFolder.save_adapter

    def seen(run, adapter):
        trained.extend(logits(adapter.eval(), ids) for ids in sequences)
        save(run, adapter)

    monkeypatch.setattr(RunFolder, "save_adapter", seen)
    flags = ("--template", "chat", "--adapt", "lora", "--lr", 0.01)
    make_run(tmp_path, tokenizer, model.to(dtype), *flags)
    out = tmp_path / "out"
    said = ok("export", "--run", tmp_path / "run", "--to", "adapter", "--out", out).stderr
    assert "logits differ by 0.0e+00 at most" in said
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(out)), mean_resizing=False)
    loaded = PeftModel.from_pretrained(base, out).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    apart = 0.0
    for ids, theirs in zip(sequences, trained, strict=True):
        assert theirs.abs().max() > 30
        torch.testing.assert_close(logits(loaded, ids), theirs, atol=1e-4, rtol=0)
        apart = max(apart, float((logits(merged, ids) - theirs).abs().max()))
    assert (apart > 1e-2) == (dtype == torch.bfloat16)  # merged weights are another model there


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # used by peft
@pytest.mark.parametrize("change", [{"lora_alpha": 33.0}, {"target_modules": ["q_proj"]}])
def test_an_adapter_that_says_something_else_leaves_nothing(chat, tmp_path, monkeypatch, change):
    write = Adapter.write

    def damaged(form, folder, model, encoder):
        write(form, folder, model, encoder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    monkeypatch.setattr(Adapter, "write", damaged)
    result = twcli("export", "--run", chat / "run", "--to", "adapter", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "nothing was written" in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_gguf_file_has_the_weights_the_control_tokens_and_the_chat_template(chat, tmp_path):
    from gguf import GGUFReader

    out = tmp_path / "out"
    ok("export", "--run", chat / "run", "--to", "gguf", "--out", out, "--name", "0=terse")
    reader = GGUFReader(out / "model.gguf")

    def read(key):
        return reader.fields[key].contents()

    tokens, kinds = read("tokenizer.ggml.tokens"), read("tokenizer.ggml.token_type")
    marked = [t for t, kind in zip(tokens, kinds, strict=True) if kind == gguf_file.CONTROL]
    own = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert marked == [*own, "<z>", "</z>", "<z0>", "<z1>", "<z2>"]
    assert read("tokenizer.ggml.pre") == "gpt-2"
    assert read("tokenizer.ggml.eos_token_id") == 2
    assert not read("tokenizer.ggml.add_bos_token")
    run = AutoModelForCausalLM.from_pretrained(chat / "run" / "model")
    model, tokenizer = (
        kind.from_pretrained(out, gguf_file="model.gguf")
        for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    plain = AutoTokenizer.from_pretrained(chat / "run" / "model")
    ids = asked(tokenizer, latent="terse")
    assert ids == ids_of(plain, f"{PROMPT}<z><z0></z>")
    torch.testing.assert_close(logits(model, ids), logits(run, ids), atol=1e-6, rtol=0)
    assert tokenizer.chat_template == read("tokenizer.chat_template")


@pytest.mark.slow
@pytest.mark.parametrize(("form", "file"), [("hf", "model.safetensors"), ("gguf", "model.gguf")])
def test_half_precision_is_written_and_checked(chat, tmp_path, form, file):
    out = tmp_path / form
    ok("export", "--run", chat / "run", "--to", form, "--out", out, "--dtype", "bf16")
    settings = {"gguf_file": file} if form == "gguf" else {}
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, **settings)
    run = AutoModelForCausalLM.from_pretrained(chat / "run" / "model", dtype=torch.bfloat16)
    for mine, theirs in zip(model.parameters(), run.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    weights = sum(weight.numel() for weight in run.parameters())
    assert (out / file).stat().st_size < 2.2 * weights + 20_000


@pytest.mark.slow
def test_the_tags_become_a_chat_template_that_builds_the_trained_prompt(words, tmp_path):
    out = tmp_path / "out"
    ok("export", "--run", words / "run", "--to", "hf", "--out", out, "--latent", "1")
    tokenizer = AutoTokenizer.from_pretrained(out)
    table = tokenizer.get_vocab()
    for latent, k in ((2, 2), (None, 1)):
        names = ("<bos>", "<x>", "w3", "w1", "</x>", "<z>", f"<z{k}>", "</z>", "<y>")
        ids = asked(tokenizer, [{"role": "user", "content": "w3 w1"}], latent=latent)
        assert ids == [table[name] for name in names]
    run = AutoModelForCausalLM.from_pretrained(words / "run" / "model")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(out), ids), logits(run, ids)
    )


@pytest.mark.slow
def test_a_tokenizer_that_begins_texts_with_a_space_gets_the_trained_prompt(tmp_path):
    """SentencePiece's: a text by itself begins with a space, x after a special token does not."""
    tokenizer = make_bytes_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = {token.replace("Ġ", "▁"): id for token, id in state["model"]["vocab"].items()}
    words = Tokenizer(tokenizer_models.BPE(vocabulary, [], unk_token="<|endoftext|>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    write_jsonl(tmp_path / "data.jsonl", [{"x": f"what is {p}", "y": "a"} for p in range(4)])
    make_run(tmp_path, tokenizer, make_chat_model(tokenizer, tie_word_embeddings=False))
    ok("export", "--run", tmp_path / "run", "--to", "hf", "--out", tmp_path / "out")
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    pieces = exported.convert_ids_to_tokens(
        asked(exported, [{"role": "user", "content": "is"}], latent=1)
    )
    assert pieces == ["<x>", "i", "s", "</x>", "<z>", "<z1>", "</z>", "<y>"]


@pytest.mark.parametrize(
    ("splitter", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
            "smollm",
        ),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            None,
        ),
    ],
)
def test_only_what_llama_cpp_splits_alike_is_written(splitter, name):
    tokenizer = make_bytes_tokenizer(splitter)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    assert gguf_file.splitting_of(state) == name


@pytest.mark.slow
def test_what_cannot_be_exported_is_one_line_that_says_what_to_do(chat, words, tmp_path):
    out = tmp_path / "out"
    run = ("export", "--run", words / "run", "--out", out, "--to")
    refused(
        *run, "adapter", says="was trained with --adapt full, so there is no adapter; give --to"
    )
    refused(*run, "gguf", says=["byte-level BPE", "run llama.cpp's convert_hf_to_gguf.py"])
    refused(*run, "hf", "--name", "terse", says="give NUMBER=NAME, such as 0=terse")
    refused(*run, "hf", "--name", "9=far", says="the run has the latents 0 to 2")
    refused(*run, "hf", "--name", "0=a", "--name", "0=b", says="latent 0 has two names")
    refused(*run, "hf", "--latent", "3", says="--latent 3: the run has 0, 1, 2")
    refused(*run, "hf", "--push-to-hub", "no owner", says="is not OWNER/NAME")
    refused("export", "--run", tmp_path, "--to", "hf", "--out", out, says="holds no run")
    refused(*run[:4], tmp_path / "no" / "out", "--to", "hf", says="there is no folder")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("keep me")
    refused(*run[:4], other, "--to", "hf", "--overwrite", says="holds files that are no export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_a_form_is_added_in_one_place(tmp_path, monkeypatch):
    """The option, its check and what is written all go by `FORMS`."""
    monkeypatch.setitem(FORMS, "folder", type("Folder", (Merged,), {"dtypes": ("bf16",)}))
    asked = {"run": str(tmp_path), "to": "folder", "out": str(tmp_path / "out")}
    assert ExportConfig(**asked, dtype="bf16").to == "folder"
    with pytest.raises(UserError, match="--to folder: its weights are written as"):
        ExportConfig(**asked, dtype="fp32")
    with pytest.raises(UserError, match=f"'none' is not one of {', '.join(FORMS)}"):
        ExportConfig(**{**asked, "to": "none"})
    shown = ExportConfig.__dataclass_fields__["to"].metadata["help"]
    assert all(form.help in shown for name, form in FORMS.items() if name != "folder")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["weights", "prompts"])
def test_an_export_that_differs_from_the_run_leaves_nothing(chat, tmp_path, monkeypatch, fault):
    write = Merged.write

    def damaged(form, folder, model, encoder):
        if fault == "weights":
            with torch.no_grad():
                model.get_output_embeddings().weight[7] += 0.01
        else:
            template = encoder.tokenizer.chat_template
            encoder.tokenizer.chat_template = template.replace("assistant\n", "assistant ")
        write(form, folder, model, encoder)

    monkeypatch.setattr(Merged, "write", damaged)
    result = twcli("export", "--run", chat / "run", "--to", "hf", "--out", tmp_path / "out")
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert "nothing was written" in line
    assert ("logits differ by" if fault == "weights" else "other tokens than training") in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # used by peft
@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(chat, tmp_path, form):
    """A limit on the size of files, in a process of its own, stands for the disk."""
    call = ["export", "--run", chat / "run", "--to", form, "--out", tmp_path / "out"]
    code = (
        "import resource, signal, sys\n"
        "from twcli.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "main(sys.argv[1:])"
    )
    full = subprocess.run(
        [sys.executable, "-c", code, *map(str, call)], capture_output=True, text=True
    )
    lines = [line for line in full.stderr.splitlines() if line.startswith("twcli:")]
    assert full.returncode == 1 and len(lines) == 1, full.stderr
    assert lines[0].startswith(f"twcli: {tmp_path / 'out'}: cannot be written: ")
    assert re.search("file too large|disk is full", lines[0], re.IGNORECASE)
    assert "Traceback" not in full.stderr
    assert list(tmp_path.iterdir()) == []
    ok(*call)


@pytest.mark.slow
def test_the_same_command_finds_its_work_done_and_another_is_refused(chat, tmp_path):
    out = tmp_path / "out"
    command = ("export", "--run", chat / "run", "--to", "hf", "--out", out)
    ok(*command)
    files = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "already exported" in ok(*command).stderr
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == files
    refused(*command, "--name", "0=terse", says="holds something else; --overwrite replaces it")
    ok(*command, "--name", "0=terse", "--overwrite")
    assert "| 0 | terse |" in (out / "README.md").read_text()


@pytest.mark.slow
def test_names_are_read_from_the_file_that_the_run_was_trained_with(words, tmp_path):
    names = tmp_path / "names.jsonl"
    encoder = ExampleEncoder(make_tokenizer(), "tiny")
    encoded = encode(encoder, make_records(10, 2))
    latent_N = np.array([0, 1, 1, 1] * 5)
    write_names(names, encoded.row_hash, latent_N, np.ones(20))
    lines = [json.loads(line) for line in names.read_text().splitlines()]
    lines[2]["name"] = "second"
    write_jsonl(names, lines)
    flags = ("--model", words / "model", "--data", words / "data.jsonl", "--names", names)
    settings = ("--baseline-policy", "dynamic", "--weighting", "token", "--steps", 2)
    ok("train", *flags, *settings, "--out", tmp_path / "run")
    ok("export", "--run", tmp_path / "run", "--to", "hf", "--out", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turn = [{"role": "user", "content": "w3"}]
    assert asked(tokenizer, turn, latent="second") == asked(tokenizer, turn, latent=1)
    # the most frequent latent is the default
    assert asked(tokenizer, turn) == asked(tokenizer, turn, latent=1)
    lines[-1] |= {"latent": 1, "name": "another"}
    write_jsonl(names, lines)
    refused(
        *("export", "--run", tmp_path / "run", "--to", "hf", "--out", tmp_path / "again"),
        says=[f"names.jsonl:{len(lines)}", "latent 1 was named"],
    )


@pytest.fixture
def serve(monkeypatch):
    """Starts `transformers serve` on a folder, in a thread, and gives its address."""
    from transformers.cli.serve import Serve

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    running = []

    def start(folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {"host": "127.0.0.1", "port": port, "device": "cpu", "log_level": "error"}
        running.append(Serve(str(folder), **settings, non_blocking=True))
        deadline = time.monotonic() + 120
        while not running[0].server.started:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return f"http://127.0.0.1:{port}"

    yield start
    for server in running:
        server.kill_server()
        server._thread.join()


@pytest.mark.slow
def test_an_exported_folder_answers_an_openai_client_under_each_latent(chat, tmp_path, serve):
    from openai import OpenAI

    out = tmp_path / "out"
    ok("export", "--run", chat / "run", "--to", "hf", "--out", out, "--name", "2=code")
    model, tokenizer = (kind.from_pretrained(out) for kind in (AutoModelForCausalLM, AutoTokenizer))
    address = serve(out)
    client = OpenAI(base_url=f"{address}/v1", api_key="none", timeout=60)
    settings = {"model": str(out), "max_tokens": 40, "temperature": 1, "seed": 7}

    def local(latent, seed):
        prompt = torch.tensor([asked(tokenizer, latent=latent)])
        set_seed(seed)
        ids = model.generate(prompt, max_new_tokens=40)[0, prompt.shape[1] :]
        return tokenizer.decode(ids, skip_special_tokens=True)

    wanted = [local(latent, seed=7) for latent in (0, 1, "code")]
    assert len(set(wanted)) == 3
    for latent, text in zip((0, 1, "code"), wanted, strict=True):
        line = {"role": "system", "content": f"latent: {latent}"}
        for messages, extra in (
            (ASK, {"chat_template_kwargs": {"latent": latent}}),
            ([line, *ASK], {}),
        ):
            answer = client.chat.completions.create(messages=messages, extra_body=extra, **settings)
            assert answer.choices[0].message.content == text
    flags = ("--server", address, "--model", out, "--x", ASK[0]["content"], "--latent", "code")
    drawn = json.loads(ok("sample", *flags, "--max-new-tokens", 40).stdout)
    seed = int(np.random.SeedSequence([0, 0]).generate_state(1)[0] >> 1)
    assert drawn == {"x": ASK[0]["content"], "y": local("code", seed), "latent": "code"}
    command = ("eval", "--run", chat / "run", "--data", chat / "data.jsonl", "--bootstrap", 20)
    judged = (*command, "--judge", "tests.conftest:judge", "--max-new-tokens", 8, "--json")
    result = ok(*judged, "--server", address, "--served-model", out)
    assert "; 12 of 12 greedy completions begin as the run's own" in result.stderr
    here, there = (json.loads(found.stdout) for found in (ok(*judged), result))
    assert here["alignment"] == there["alignment"] and there["served"] == str(out)


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` calls when it uploads a folder; keeps the files it is given."""

    files: ClassVar = {}
    visibility = None

    def log_message(self, *_):
        pass

    def answer(self, status, body, **headers):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self):
        self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def do_POST(self):
        data, address = self.body(), f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            type(self).visibility = json.loads(data)["visibility"]
            self.answer(200, {"url": f"{address}/me/model", "name": "me/model"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(data)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.files[entry["value"]["path"]] = content
            self.answer(200, {"commitUrl": f"{address}/me/model/commit/0", "commitOid": "0" * 40})
        else:
            self.answer(200, {})


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(Hub, "files", {})
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_the_folder_is_uploaded_to_a_private_repository(chat, tmp_path, hub):
    out = tmp_path / "out"
    command = ("export", "--run", chat / "run", "--to", "hf", "--out", out)
    result = ok(*command, "--push-to-hub", "me/model")
    assert "uploaded to me/model, which is private" in result.stderr
    assert Hub.visibility == "private"
    assert Hub.files == {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.slow
def test_a_failed_upload_leaves_the_export_and_the_same_command_resumes(chat, tmp_path, hub):
    out = tmp_path / "out"
    command = ("export", "--run", chat / "run", "--to", "hf", "--out", out)
    hub.shutdown()
    hub.server_close()
    result = twcli(*command, "--push-to-hub", "me/model")
    assert result.exit_code == 1
    assert "is finished; the same command uploads it again" in result.stderr.splitlines()[-1]
    assert (out / "model.safetensors").is_file()
    assert "already exported" in ok(*command).stderr
