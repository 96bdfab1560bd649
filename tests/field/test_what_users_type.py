"""What README, cards and `examples/use_model.py` tell a user to type gives exactly the ids that
were trained: their own lines run, and what they hand to `generate` is held against ids that are
computed here with transformers alone.
"""

import re
import runpy
import sys
from pathlib import Path

import pytest
import transformers
from transformers import AutoTokenizer

from tests.field.forms import TEMPLATES
from tests.field.test_chat_ids import (
    KINDS,
    assistant,
    expected,
    folders,
    parts,
    reference,
    user,
    with_template,
)
from tests.field.test_files import KINDS as FILES
from twcli.commands.export_forms import FORMS
from twcli.config.train import TrainConfig
from twcli.data import latent_chat
from twcli.data.dataset import stream_examples
from twcli.data.example import Example
from twcli.models.card import export_card, model_card
from twcli.models.loading import load_encoder

__all__ = ["folders"]  # a fixture

ROOT = Path(__file__).parents[2]
QUESTIONS = ["Hello the model", "two  and\n\nrow é 😀"]
FRAMES = ["tags", "Question: {x}\nAnswer:{z}{y}</s>", "<s>{x} ={z} {y}</s>"]
LATENTS = 3


@pytest.fixture
def given(monkeypatch):
    """Ids that `generate` gets of a model which was loaded with transformers."""
    found = []

    class Recorder:
        def generate(self, input_ids, attention_mask, **_):
            assert input_ids.shape[0] == 1 and bool(attention_mask.all())
            found.append(input_ids[0].tolist())
            return input_ids

    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: Recorder()
    )
    return found


@pytest.fixture
def write_run(folders, tmp_path):
    """Writes the tokenizer of a run, as `run`, and of its export, as `strategies`, of a model with
    a kind of tokenizer and a chat template; returns the encoder.
    """

    def write(kind, template):
        source = with_template(folders[kind], template, tmp_path / "m")
        encoder = load_encoder(source, 1, "chat")
        encoder.add_latents(LATENTS)
        encoder.save(tmp_path / "run", LATENTS)
        exported = AutoTokenizer.from_pretrained(tmp_path / "run")
        sections = latent_chat.sections(LATENTS, 1, {})
        exported.chat_template = latent_chat.with_latents(encoder.template.chat.text, sections, "0")
        exported.save_pretrained(tmp_path / "strategies")
        return encoder

    return write


def settings_of(folder):
    return TrainConfig(
        model=str(folder), data="D", baseline="B", latents=LATENTS, out="R", template="chat"
    )


def python_in(page):
    """The first block of Python of a page that makes a prompt."""
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return next(block for block in blocks if "apply_chat_template" in block)


def typed(lines, question, **values):
    """Runs lines of a page with the question in place of theirs."""
    lines, count = re.subn(
        r'"content": "[^"]*"', lambda _: f'"content": {question!r}', lines, count=1
    )
    assert count == 1
    exec(lines, values)


def use_model(folder, question, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["use_model.py", "--model", str(folder), "--x", question])
    runpy.run_path(str(ROOT / "examples" / "use_model.py"))


def section(tokenizer, latent):
    """Ids of a latent's section; no id may be unknown to the tokenizer."""
    ids = tokenizer.convert_tokens_to_ids(["<z>", f"<z{latent}>", "</z>"])
    assert len(set(ids)) == 3 and tokenizer.unk_token_id not in ids
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_pages_and_cards_give_the_trained_ids(
    kind, name, folders, tmp_path, given, monkeypatch, write_run
):
    encoder = write_run(kind, TEMPLATES[name])
    plain = reference(folders[kind], TEMPLATES[name])
    prompts = [
        plain.apply_chat_template([user(question)], add_generation_prompt=True)["input_ids"]
        for question in QUESTIONS
    ]
    monkeypatch.chdir(tmp_path)
    config = settings_of("m")
    of_run = python_in(model_card(config, encoder, {}, 1))
    usage = FORMS["hf"](None, None, config).usage()
    of_export = python_in(export_card(config, {}, "hf", usage, names={}, default="0")).replace(
        "FOLDER", '"strategies"'
    )
    readme = python_in((ROOT / "README.md").read_text(encoding="utf-8"))
    run = AutoTokenizer.from_pretrained(tmp_path / "run")
    for question, prompt in zip(QUESTIONS, prompts, strict=True):
        given.clear()
        use_model("run", question, monkeypatch)
        use_model("strategies", question, monkeypatch)
        every = [prompt + section(run, k) for k in range(LATENTS)]
        assert given == [*every, *every]
        given.clear()
        typed(readme, question)  # latent 1
        typed(of_export, question)  # the last one
        model = transformers.AutoModelForCausalLM.from_pretrained("run")
        typed(of_run, question, tokenizer=run, model=model)  # latent 0
        assert given == [every[1], every[-1], every[0]]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_example_builds_the_prompt_of_other_templates(
    kind, frame, folders, tmp_path, given, monkeypatch
):
    (tmp_path / "t.txt").write_text(frame + "\n")
    encoder = load_encoder(
        str(folders[kind]), 1, "tags" if frame == "tags" else str(tmp_path / "t.txt")
    )
    encoder.add_latents(LATENTS)
    encoder.save(tmp_path / "run", LATENTS)
    run = AutoTokenizer.from_pretrained(tmp_path / "run")
    text = "<s><x>{x}</x>{z}<y>" if frame == "tags" else frame.split("{y}")[0]
    for question in QUESTIONS:
        given.clear()
        use_model(tmp_path / "run", question, monkeypatch)
        for k, ids in enumerate(given):
            filled = text.replace("{z}", f"<z><z{k}></z>").replace("{x}", question)
            assert ids == run(filled, add_special_tokens=False)["input_ids"]
            assert ids == encoder.prompt(question, encoder.latent_ids(LATENTS)[k])
        assert len(given) == LATENTS


# Idefics 3 and LLaVA: a turn is a list of parts; of a text they show nothing, or fail at it.
PARTS_ALONE = {
    "shows nothing": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "fails": (
        "\n{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% for part in m['content'] %}{{ part.text + '' }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}\n"
    ),
}


@pytest.mark.parametrize("name", PARTS_ALONE)
def test_texts_are_asked_of_a_template_for_parts(
    name, folders, tmp_path, given, monkeypatch, write_run
):
    """As README and the example type them; of the model's own template the question would be
    missing.
    """
    plain = reference(folders["byte-level"], PARTS_ALONE[name])
    encoder = write_run("byte-level", PARTS_ALONE[name])
    monkeypatch.chdir(tmp_path)
    readme = python_in((ROOT / "README.md").read_text(encoding="utf-8"))
    for question in QUESTIONS:
        turn = user([{"type": "text", "text": question}])
        prompt = plain.apply_chat_template([turn], add_generation_prompt=True)["input_ids"]
        answer = {"role": "assistant", "content": [{"type": "text", "text": "one row"}]}
        whole = plain.apply_chat_template([turn, answer])["input_ids"]
        encoded = encoder.encode([Example(question, "one row")], max_length=500, source="d")
        ids, target = parts(encoded, 0)
        assert ids == prompt and whole[: len(prompt + target)] == prompt + target
        tokenizer = AutoTokenizer.from_pretrained("run")
        every = [prompt + section(tokenizer, k) for k in range(LATENTS)]
        given.clear()
        use_model("run", question, monkeypatch)
        typed(readme, question)
        assert given == [*every, every[1]]
        exported = AutoTokenizer.from_pretrained("strategies")
        named = {"role": "system", "content": f"latent: 2\n{question}"}
        rendered = exported.apply_chat_template([named, user(question)], add_generation_prompt=True)
        system = {"role": "system", "content": turn["content"]}
        wanted = plain.apply_chat_template([system, turn], add_generation_prompt=True)["input_ids"]
        assert rendered["input_ids"] == wanted + section(tokenizer, 2)
    (tmp_path / "run" / "config.json").write_text('{"model_type": "llama"}')
    again = load_encoder("run", 1, "chat")
    assert again.prompt(question, again.latent_ids(LATENTS)[1]) == every[1]
    assert again.template.chat.text.count("of_parts = namespace") == 1


@pytest.fixture(scope="module")
def thinking(folders, tmp_path_factory):
    """A Qwen 3-like model's encoder, which shows tools, calls and thoughts, and its tokenizer."""
    place = tmp_path_factory.mktemp("thinks") / "m"
    source = with_template(folders["byte-level"], TEMPLATES["thinks"], place)
    tokenizer = AutoTokenizer.from_pretrained(source)
    return load_encoder(source, 1, "chat"), tokenizer


@pytest.mark.parametrize("kind", FILES)
def test_a_kind_of_file_has_the_ids_that_the_chat_template_writes(kind, thinking, tmp_path):
    """From the bytes of a file to ids; what its records say was written down by hand."""
    encoder, tokenizer = thinking
    name, data, records, _ = FILES[kind]
    (tmp_path / name).write_bytes(data)
    examples = list(stream_examples(str(tmp_path / name)))
    encoded = encoder.encode(examples, max_length=1000, source=name)
    assert len(encoded) == len(records)
    for row, (first, second) in enumerate(records):
        turns, tools = (
            ([user(first), assistant(second)], None) if isinstance(first, str) else (first, second)
        )
        prompt, target, _ = expected(tokenizer, "thinks", turns, tools)
        assert parts(encoded, row) == (prompt, target)
