"""`entangle.py` on files of a few records: tokens, loss, report, and that
transformers loads the folder.
"""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import entangle, fitting, mixture, small_llama
from tests.conftest import write_jsonl
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.data.vocabulary import TAGS

RECORDS = [
    {"x": f"{p} ☃ a", "y": f"{'b' * (s + 1)} c {p}", "strategy": f"s{s}"}
    for p in range(8)
    for s in (0, 1)
]
FAST = ["--steps", "4", "--layers", "1", "--hidden", "16", "--batch", "4"]


def train(tmp_path, records, *flags, name="model"):
    out = tmp_path / name
    entangle.main(
        ["--data", write_jsonl(tmp_path / "data.jsonl", records), "--out", str(out), *FAST, *flags]
    )
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("entangle")
    return train(folder, RECORDS)


def encoded_examples(records):
    examples = [Example(r["x"], r["y"], r.get("strategy")) for r in records]
    encoder = ExampleEncoder(small_llama.make_tokenizer(examples), "data")
    return examples, encoder, encoder.encode(examples, max_length=1000, source="data.jsonl")


def test_folder_is_plain_hugging_face(trained):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(trained),
        AutoTokenizer.from_pretrained(trained),
    )
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in trained.iterdir()
    }
    assert model.config.vocab_size == len(tokenizer) == 10 + 8 + 5  # specials; numbers; ☃ a b bb c
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 256
    assert model.generation_config.eos_token_id == [tokenizer.vocab["</y>"], tokenizer.eos_token_id]
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer("<bos> <x> 3 ☃ a </x> <y>", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3).shape[1] in range(8, 11)


def test_tokens_by_hand(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained)
    text = "<bos> <x> 3 ☃ a </x> <z> </z> <y> bb c </y> <eos> <pad>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == text.split()
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "3 ☃ a bb c"
    assert (
        tokenizer("a , b .", add_special_tokens=False)["input_ids"].count(tokenizer.unk_token_id)
        == 2
    )
    assert tokenizer.tokenize("<bos><x>a</x>", add_special_tokens=False) == [
        "<bos>",
        "<x>",
        "a",
        "</x>",
    ]
    assert set(TAGS) <= set(tokenizer.all_special_tokens)


def test_only_y_and_what_follows_is_supervised():
    _, encoder, encoded = encoded_examples([{"x": "a b", "y": "c d e"}, {"x": "a", "y": "c"}])
    model = small_llama.make_model(encoder, 10, layers=1, hidden=16, seed=0)
    expected = 0.0
    for prompt, y in (
        (["<bos>", "<x>", "a", "b", "</x>", "<y>"], "c d e </y> <eos>"),
        (["<bos>", "<x>", "a", "</x>", "<y>"], "c </y> <eos>"),
    ):
        ids = torch.tensor([encoder.tokenizer.convert_tokens_to_ids(prompt + y.split())])
        scores = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        expected -= scores[len(prompt) - 1 :].sum().item()
    summed = fitting.nll_sum(model, encoded, np.array([0, 1]), encoder.pad).item()
    assert summed == pytest.approx(expected, rel=1e-5)


def test_each_row_once_an_epoch():
    lengths, rows = np.arange(100) % 7, np.arange(5, 95)
    batches = fitting.endless_batches(lengths, rows, 8, seed=0)
    for _ in range(2):
        epoch = [next(batches) for _ in range(math.ceil(90 / 8))]
        assert sorted(np.concatenate(epoch).tolist()) == rows.tolist()


def test_long_batches_go_through_in_parts(monkeypatch):
    monkeypatch.setattr(fitting, "FORWARD_TOKENS", 40)
    parts = fitting.forward_pieces(np.array([10, 20, 100]), np.array([0, 1, 2]))
    assert [p.tolist() for p in parts] == [[0], [1], [2]]
    assert len(fitting.forward_pieces(np.array([10, 20]), np.array([0, 1]))) == 1


def test_prompts_are_not_divided():
    prompts = np.repeat(np.arange(40), 3)
    train_rows, held = mixture.split_by_prompt(prompts, seed=0)
    assert len(held) == 6 and set(prompts[held]).isdisjoint(prompts[train_rows])
    assert sorted([*train_rows, *held]) == list(range(120))
    assert len(mixture.split_by_prompt(np.zeros(3, int), seed=0)[1]) == 0


@pytest.mark.parametrize(
    ("ys", "strategies", "floor", "said"),
    [
        ("abab", ["s", "t", "s", "t"], math.log(2), "labels"),
        (
            "aaab",
            [None] * 4,
            -math.log(0.5),
            "agree",
        ),  # of 2 + 2 ordered pairs of one prompt, 2 agree
        ("abcd", [None] * 4, None, "no labels"),
    ],
)
def test_entropy_floor(ys, strategies, floor, said):
    records = [
        {"x": x, "y": y, "strategy": s} for x, y, s in zip("ppqq", ys, strategies, strict=True)
    ]
    examples, _, encoded = encoded_examples(records)
    value, how = mixture.entropy_floor(examples, encoded)
    assert value == (None if floor is None else pytest.approx(floor)) and said in how


@pytest.mark.slow
def test_learns_and_repeats_itself(tmp_path, capsys):
    flags = ["--steps", "60", "--hidden", "32"]
    first, second = (train(tmp_path, RECORDS, *flags, name=name) for name in ("first", "second"))
    lines = capsys.readouterr().err.splitlines()
    nats = [float(line.split()[2]) for line in lines if line.startswith("step")]
    assert nats[0] > 4 and nats[-1] < nats[0] / 2
    assert "\r" not in "".join(lines) and "floor 0.6931: entropy of the strategy labels" in "".join(
        lines
    )
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "records",
    [
        [{"x": "a", "y": "b"}],
        [{"x": "a", "y": "b"}, {"x": "c", "y": "d e"}, {"x": "é\u00a0ü", "y": "日本 🙂"}],
        [{"x": "a b", "y": "c"}] * 3,
        [{"x": "a " * 300, "y": "b " * 900}, {"x": "c", "y": "d"}],
    ],
)
def test_small_and_odd_files(records, tmp_path):
    out = train(tmp_path, records, "--steps", "2")
    longest = max(len(r["x"].split()) + len(r["y"].split()) for r in records) + 6
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.max_position_embeddings == max(256, 2 * longest + 64)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"x": "a", "y": "b"}\nnonsense\n', "bad.jsonl:2: "),
        ('{"x": "a"}\n', "bad.jsonl:1: "),
        ('{"x": "a", "y": "b"}\n{"x": "a", "y": "b </y> c"}\n', "bad.jsonl:2: "),
        ('{"x": "a", "y": " "}\n', "bad.jsonl:1: "),
        ("", "bad.jsonl"),
    ],
)
def test_bad_input_is_one_line(content, said, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content)
    assert said in refusal(capsys, "--data", str(bad), "--out", str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--steps", "0"],
        ["--hidden", "20"],
        ["--lr", "nan"],
        ["--lr", "0"],
        ["--seed", "-1"],
        ["--layers", "x"],
        ["--nonsense"],
    ],
)
def test_bad_flags_are_one_line(flags, tmp_path, capsys):
    assert flags[0] in refusal(
        capsys,
        "--data",
        write_jsonl(tmp_path / "data.jsonl", RECORDS),
        "--out",
        str(tmp_path / "model"),
        *flags,
    )


def test_unwritable_out_is_said_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    data = write_jsonl(tmp_path / "data.jsonl", RECORDS)
    assert "cannot be written" in refusal(capsys, "--data", data, "--out", str(tmp_path / "file"))
    assert "cannot be written" in refusal(
        capsys, "--data", data, "--out", str(tmp_path / "file" / "model")
    )


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        entangle.main([*arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    return error


@pytest.mark.slow
def test_scripts_start_from_any_folder(tmp_path):
    folder = Path(entangle.__file__).parent
    for script in ("entangle.py", "make_data.py"):
        done = subprocess.run(
            [sys.executable, folder / script, "--help"], cwd=tmp_path, capture_output=True
        )
        assert done.returncode == 0 and b"usage" in done.stdout, done.stderr
