"""Conversations from a file to a run and to what a user types: the ids are one and the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.field.forms import TEMPLATES, byte_level
from twcli.cli.main import main
from twcli.data.dataset import Prompts, completed_record, read_examples, stream_examples
from twcli.errors import UserError
from twcli.models.inputs import open_inputs

ROOT = Path(__file__).parents[2]
SYSTEM = {"role": "system", "content": "You are terse."}


def turns(*texts, system=False):
    roles = ("user", "assistant")
    found = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return [SYSTEM, *found] if system else found


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A tiny model with Qwen 3's form of template, and its folder."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATES["thinks"]
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder / "model")
    records = [
        {"messages": turns(f"{n} and {n}?", f"{n + k}", "and one more?", word, system=n % 2 == 0)}
        for n in range(6)
        for k, word in enumerate(("the model reads", "one row"))
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def twcli(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_each_turn_is_an_example_of_its_own(tmp_path):
    file = tmp_path / "d.jsonl"
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    conversation = [
        {"role": "assistant", "content": "Hello, I greet."},
        *turns("a", "b"),
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "d"},
    ]
    file.write_text(json.dumps({"messages": conversation}) + "\n")
    (last,) = read_examples(str(file))
    assert last.messages == tuple(conversation) and last.y == "d"
    each = read_examples(str(file), each_turn=True)
    assert [len(e.messages) for e in each] == [3, 5, 7] and each[-1] == last
    assert [e.y for e in each][::2] == ["b", "d"] and '"name": "f"' in each[1].y
    assert all(e.messages[-1]["role"] == "assistant" for e in each)
    assert {e.where for e in each} == {f"{file}:1"}


def test_prompts_of_conversations_are_kept_whole(tmp_path):
    records = [
        {"messages": turns("a", "b", "ü", "x", system=True)},
        {"messages": turns("a", "b", "ü", "y", system=True)},  # the same prompt
        {"messages": turns("a", "c", "ü", "x", system=True)},
        {"messages": turns("only")},
    ]
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    prompts = Prompts.of(stream_examples(str(file), y_field=None))
    whole = prompts[range(len(prompts))]
    assert [len(e.messages) for e in whole] == [4, 4, 1]
    assert completed_record(whole[0], "z") == {"messages": turns("a", "b", "ü", "z", system=True)}


def test_old_caches_are_refused_and_say_what_to_run(chat, tmp_path, monkeypatch):
    out = tmp_path / "b.h5"
    arguments = ("--model", chat / "model", "--data", chat / "data.jsonl", "--template", "chat")
    with monkeypatch.context() as patch:
        patch.setattr("twcli.data.encoder.VERSION", 1)
        twcli("precompute", *arguments, "--out", out)
    inputs = open_inputs(str(chat / "model"), str(chat / "data.jsonl"), template="chat")
    with pytest.raises(UserError, match=r"template.version: .* `twcli precompute --overwrite`$"):
        inputs.open_cache(str(out))


def test_a_conversation_without_a_chat_template_is_refused(chat):
    result = CliRunner().invoke(
        main,
        [
            *("precompute", "--model", str(chat / "model"), "--template", "tags"),
            *("--data", str(chat / "data.jsonl"), "--out", str(chat / "none.h5")),
        ],
    )
    assert result.exit_code == 2
    assert "data.jsonl:1: a conversation needs the model's chat template" in result.stderr


def test_prompts_that_are_conversations_are_completed_as_the_template_writes_them(
    chat, tmp_path, monkeypatch
):
    """System, turns, a call of a tool and its result, tools: from each way to write them."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    asked = [
        *turns("2 and 2?", "4", "and f of 1?", system=True),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    text = {**call, "function": {"name": "f", "arguments": '{"n": 1}'}}
    written = [*asked[:-2], {**asked[-2], "tool_calls": [text]}, asked[-1]]
    records = [
        {"messages": [*written, {"role": "assistant", "content": "not read"}], "tools": tools},
        {"prompt": json.dumps(written), "tools": json.dumps(tools)},
        {"prompt": turns("only this?")},
    ]
    given = []

    def generate(model, encoder, prompts, **_):
        given.extend(prompts)
        return ["a word"] * len(prompts), [True] * len(prompts)

    monkeypatch.setattr("twcli.commands.sample.generate", generate)
    theirs = AutoTokenizer.from_pretrained(chat / "model")
    for record in records:
        data, out = tmp_path / "d.jsonl", tmp_path / "out.jsonl"
        data.write_text(json.dumps(record) + "\n")
        call_of = ("sample", "--model", chat / "model", "--data", data, "--out", out)
        twcli(*call_of, "--overwrite", "--max-new-tokens", 3)
        prompt, offered = (asked, tools) if "tools" in record else (turns("only this?"), None)
        ids = theirs.apply_chat_template(prompt, tools=offered, add_generation_prompt=True)
        assert given.pop() == ids["input_ids"]
        (line,) = map(json.loads, out.read_text().splitlines())
        assert line["messages"] == [*prompt, {"role": "assistant", "content": "a word"}]
        assert line.get("tools") == offered
    assert not given


@pytest.mark.slow
def test_from_conversations_to_what_a_user_types(chat, tmp_path):
    data = chat / "data.jsonl"
    settings = ("--template", "chat", "--chat-template-kwargs", '{"enable_thinking": false}')
    common = ("--model", chat / "model", "--data", data, *settings, "--each-turn")
    twcli("precompute", *common, "--out", tmp_path / "b.h5")
    twcli(
        *("train", *common, "--baseline", tmp_path / "b.h5", "--latents", 2, "--steps", 2),
        *("--warm-start", "none", "--out", tmp_path / "run"),
    )
    figures = json.loads(
        twcli(
            *("eval", "--run", tmp_path / "run", "--data", data, "--each-turn"),
            *("--bootstrap", 20, "--json"),
        )
    )
    assert figures["likelihood"]["gain"] is not None
    # Trained ids, from the frozen model's own tokenizer with the switch, and typed in the run's.
    inputs = open_inputs(
        *(str(chat / "model"), str(data)),
        template="chat",
        chat_settings={"enable_thinking": False},
        each_turn=True,
    )
    theirs = AutoTokenizer.from_pretrained(chat / "model")
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert len(inputs.encoded) == 24
    for row, example in enumerate(read_examples(str(data), each_turn=True)):
        prompt = list(example.messages[:-1])
        expected = theirs.apply_chat_template(
            prompt, add_generation_prompt=True, enable_thinking=False
        )["input_ids"]
        assert inputs.encoded.prompt_ids(row) == expected
        section = saved.convert_tokens_to_ids(["<z>", "<z1>", "</z>"])
        typed = saved.apply_chat_template(prompt, add_generation_prompt=True, latent=1)
        assert typed["input_ids"] == expected + section
    drawn = tmp_path / "drawn.jsonl"
    twcli(
        *("sample", "--run", tmp_path / "run", "--data", data, "--latent", "all"),
        *("--max-new-tokens", 3, "--out", drawn),
    )
    again = [json.loads(line) for line in drawn.read_text().splitlines()]
    assert again and all(r["messages"][-1]["role"] == "assistant" for r in again)
    assert {r["latent"] for r in again} <= {0, 1}
    shown = subprocess.run(
        [
            *(sys.executable, ROOT / "examples" / "use_model.py"),
            *("--model", tmp_path / "run" / "model", "--x", "2 and 2?", "--max-new-tokens", "2"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--- z0\n" in shown and "--- z1\n" in shown
