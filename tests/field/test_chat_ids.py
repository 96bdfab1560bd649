"""The ids of training are those that inference has: every form of chat template with every form of
tokenizer, against ids that are computed here with transformers alone.
"""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.field.forms import END, TEMPLATES, TOKENIZERS, model_file_only
from twcli.data.batches import collate
from twcli.data.example import Example
from twcli.errors import UserError
from twcli.models.loading import load_encoder

KINDS = [*TOKENIZERS, "model-file", "model-file-legacy"]
QUESTION, ANSWER = {"role": "user", "content": "Hello the model"}, "the model reads"
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
]


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def user(content):
    return {"role": "user", "content": content}


PLAIN = [
    [user("Hello the model"), assistant("the model reads")],
    [user("Hello the model"), assistant("one row")],
    [user("2 and 2?"), assistant("4"), user("two  and two?\n"), assistant("  four ü 😀\n\nrow")],
    [user("a"), assistant("b"), user(" é"), assistant("def add(a, b):\n    return a + b")],
]
SYSTEM = [{"role": "system", "content": "You are terse."}, user("2+2?"), assistant("4")]
EMPTY_TURN = [user("a"), assistant(""), user("b"), assistant("the row")]
LONG = [t for i in range(40) for t in (user(f"Hello {i} " * 20), assistant(f"one row {i}"))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each kind of tokenizer in a folder, without a chat template."""
    places = {}
    for kind in KINDS:
        place = tmp_path_factory.mktemp(kind)
        if kind.startswith("model-file"):
            model_file_only(place, legacy=kind.endswith("legacy"))
        else:
            TOKENIZERS[kind]().save_pretrained(place)
            (place / "config.json").write_text('{"model_type": "llama"}')
        places[kind] = place
    return places


@functools.cache
def _tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def reference(folder, template):
    """A tokenizer with the template, which always tells one date."""
    tokenizer = _tokenizer(folder)
    tokenizer.chat_template = template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    return tokenizer


def with_template(folder, template, place):
    """A copy of the folder, with the template as model folders have it."""
    shutil.copytree(folder, place)
    (place / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(place)


def expected(tokenizer, name, messages, tools=None, **settings):
    """(prompt's ids, ids of the last turn with its end, text of both): None for the turn's where
    the tokenizer joins the two.
    """
    prompt, whole = (
        tokenizer.apply_chat_template(
            turns, add_generation_prompt=asked, tools=tools, tokenize=False, **settings
        )
        for turns, asked in ((messages[:-1], True), (messages, False))
    )
    assert whole.startswith(prompt)
    if name == "text-end":
        whole = whole.removesuffix("\n")
    ids = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tools=tools, **settings
    )["input_ids"]
    assert ids == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    all_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if name == "no-end":
        all_ids.append(tokenizer.eos_token_id)
    elif name != "text-end":
        called = messages[-1].get("tool_calls") and name == "date"
        end = tokenizer.convert_tokens_to_ids("<|eom_id|>" if called else END[name])
        all_ids = all_ids[: len(all_ids) - all_ids[::-1].index(end)]
    kept = all_ids[: len(ids)] == ids
    return ids, all_ids[len(ids) :] if kept else None, tokenizer.decode(all_ids)


def conversation(messages, tools=None):
    return Example("", "", messages=tuple(messages), tools=tools)


def parts(encoded, row):
    ids = encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]].tolist()
    first = int(encoded.prompt_lengths[row]) + 1
    assert len(ids) - first == encoded.target_lengths[row]
    return ids[:first], ids[first:]


def conversations_of(name):
    found = [(turns, None) for turns in [*PLAIN, LONG]]
    if name not in ("no-system", "alternates"):
        found.append((SYSTEM, None))
    if name != "no-system":
        found.append((EMPTY_TURN, None))
    if name in ("date", "thinks"):
        result = {"role": "tool", "content": "4 degrees"}
        found += [
            ([user("weather in Paris?"), assistant("Let me check.", tool_calls=[CALL])], TOOLS),
            ([user("weather?"), assistant("", tool_calls=[CALL]), result, assistant("4")], TOOLS),
        ]
    if name in ("thinks", "opens-think"):
        thought = assistant("4", reasoning_content="two and two are four")
        found += [([user("2+2?"), thought], None), ([*PLAIN[0], user("2+2?"), thought], None)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_models_own_template(kind, name, folders, tmp_path):
    template = TEMPLATES[name]
    encoder = load_encoder(with_template(folders[kind], template, tmp_path / "m"), 2, "chat")
    tokenizer = reference(folders[kind], template)
    conversations = conversations_of(name)
    encoded = encoder.encode(
        [conversation(turns, tools) for turns, tools in conversations],
        max_length=20_000,
        source="d.jsonl",
    )
    joined = 0
    for row, (turns, tools) in enumerate(conversations):
        prompt, target, text = expected(tokenizer, name, turns, tools)
        got_prompt, got_target = parts(encoded, row)
        assert got_prompt == prompt
        if target is None:
            joined += 1
            assert got_target and "".join(tokenizer.decode(prompt + got_target).split()) == (
                "".join(text.split())
            )
        else:
            assert got_target == target
    assert [f"in {joined} of {len(encoded)} records" in n for n in encoded.notes].count(True) == (
        joined > 0
    )
    # With z: what the run's folder makes of `latent=k`, and the same y.
    encoder.add_latents(3)
    encoder.save(tmp_path / "run", 3)
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    batch = collate(np.arange(len(encoded)), encoded, encoder, None)
    for row, (turns, tools) in enumerate(conversations):
        prompt, target = parts(encoded, row)

        def typed(turns=turns, tools=tools, **more):
            return saved.apply_chat_template(
                turns[:-1], add_generation_prompt=True, tools=tools, **more
            )["input_ids"]

        assert typed() == prompt
        for k, latent in enumerate(encoder.latent_ids(3)):
            sequence = batch.latent_BL[row].clone()
            slot = int(batch.slot_B[row])
            sequence[slot : slot + 2] = torch.tensor(latent)
            ids = typed(latent=k)
            assert sequence[: len(ids) + len(target)].tolist() == ids + target
            assert ids == encoder.prompt(conversation(turns, tools), latent)
            assert ids[: len(prompt) + 1] == encoder.router_prompt(conversation(turns, tools))
    with pytest.raises(Exception, match="latent 3 is unknown; this model has 0, 1, 2"):
        typed(latent=3)


def _assert_texts_are_one_turn_each(encoder, tokenizer, name):
    pairs = [("Hello the model", "the model reads"), ("Hello the model", "one row"), ("é 😀", "ü")]
    encoded = encoder.encode([Example(x, y) for x, y in pairs], max_length=500, source="d")
    for row, (x, y) in enumerate(pairs):
        prompt, target, _ = expected(tokenizer, name, [user(x), assistant(y)])
        assert parts(encoded, row)[0] == prompt == encoder.prompt(x)
        assert target is None or parts(encoded, row)[1] == target
    assert encoded.prompt_index.tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_two_texts_go_the_same_way(kind, folders, tmp_path):
    for name in ("alternates", "thinks", "literal-end"):
        place = with_template(folders[kind], TEMPLATES[name], tmp_path / name)
        tokenizer = reference(folders[kind], TEMPLATES[name])
        _assert_texts_are_one_turn_each(load_encoder(place, 1, "chat"), tokenizer, name)


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece-oldest", "model-file-legacy"])
def test_no_space_is_put_before_x_and_y(kind, folders, tmp_path):
    """Llama 2's form, by hand: one `▁` before x and one before y, which the template's own spaces
    are.
    """
    place = with_template(folders[kind], TEMPLATES["alternates"], tmp_path / "m")
    encoder = load_encoder(place, 1, "chat")
    encoded = encoder.encode([Example("Hello the model", "one row")], max_length=99, source="d")
    tokens = "".join(encoder.tokenizer.convert_ids_to_tokens(encoded.ids.tolist()))
    for byte, text in (("5B", "["), ("5D", "]"), ("2F", "/")):
        tokens = tokens.replace(f"<0x{byte}>", text)
    first = "" if kind == "sentencepiece" else "▁"
    assert tokens == f"<s>{first}[INST]▁Hello▁the▁model▁[/INST]▁one▁row▁</s>"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frame", ["tags", "Question: {x}\nAnswer:{z}{y}</s>", "<s>{x} ={z} {y}"])
def test_other_templates_have_the_ids_of_their_text(kind, frame, folders, tmp_path):
    """`tags` and files: x, y and what follows them get no space of their own."""
    (tmp_path / "t.txt").write_text(frame + "\n")
    name = "tags" if frame == "tags" else str(tmp_path / "t.txt")
    encoder = load_encoder(str(folders[kind]), 1, name)
    encoder.add_latents(2)
    text = "<s><x>{x}</x>{z}<y>{y}</y>" if frame == "tags" else frame.removesuffix("</s>")
    end = "</y>" if frame == "tags" else "</s>"
    pairs = [("Hello the model", "the model reads"), (" two  words", "é 😀\n\nrow"), ("4", " 4")]
    encoded = encoder.encode([Example(x, y) for x, y in pairs], max_length=500, source="d")
    encoder.save(tmp_path / "run", 2)
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    batch = collate(np.arange(len(pairs)), encoded, encoder, None)
    for row, (x, y) in enumerate(pairs):
        before = text.split("{y}")[0].replace("{x}", x)
        with_z = saved(before.replace("{z}", "<z><z1></z>"), add_special_tokens=False)["input_ids"]
        prompt, target = parts_of_row(encoded, row)
        assert encoder.prompt(x, encoder.latent_ids(2)[1]) == with_z
        place = int(batch.slot_B[row])
        sequence = batch.latent_BL[row].tolist()
        assert (
            sequence[:place]
            + encoder.latent_ids(2)[1]
            + sequence[place + 1 :][: len(with_z) - place - 1 + len(target)]
            == with_z + target
        )
        whole = saved(before.replace("{z}", "") + y + end, add_special_tokens=False)["input_ids"]
        if whole[: len(prompt)] == prompt:
            assert target == whole[len(prompt) :]
        else:
            assert frame != "tags" and encoded.notes


def parts_of_row(encoded, row):
    first = int(encoded.offsets[row])
    y = first + int(encoded.prompt_lengths[row]) + 1
    ids = encoded.ids
    return ids[first:y].tolist(), ids[y : y + int(encoded.target_lengths[row])].tolist()


THINKING = [
    [user("2 and 2"), assistant("<think>\ntwo and two\n</think>\n\n4")],
    [user("2 and 2"), assistant("4")],
]


def test_one_think_block_whatever_the_record_has(folders, tmp_path):
    place = with_template(folders["byte-level"], TEMPLATES["thinks"], tmp_path / "m")
    encoder = load_encoder(place, 1, "chat")
    encoded = encoder.encode([conversation(t) for t in THINKING], max_length=200, source="d")
    texts = [encoder.tokenizer.decode([*p, *y]) for p, y in (parts(encoded, r) for r in (0, 1))]
    start = "<|im_start|>user\n2 and 2<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert texts[0] == start + "two and two\n</think>\n\n4<|im_end|>"
    assert texts[1] == start + "\n</think>\n\n4<|im_end|>"
    # Without thinking the block belongs to the prompt, and the run's folder keeps it so.
    off = load_encoder(place, 1, "chat", {"enable_thinking": False})
    encoded = off.encode([conversation(THINKING[1])], max_length=200, source="d")
    prompt, target = (off.tokenizer.decode(ids) for ids in parts(encoded, 0))
    assert (prompt, target) == (start + "\n</think>\n\n", "4<|im_end|>")
    off.add_latents(2)
    off.save(tmp_path / "run", 2)
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    typed = saved.apply_chat_template(
        THINKING[1][:1], add_generation_prompt=True, latent=1, tokenize=False
    )
    assert typed == prompt + "<z><z1></z>"
    own = saved.apply_chat_template(
        THINKING[1][:1], add_generation_prompt=True, enable_thinking=True, tokenize=False
    )
    assert own == start.removesuffix("<think>\n")
    with pytest.raises(
        UserError, match=r"d:1: .*does not continue its own prompt.*--template FILE"
    ):
        off.encode([conversation(THINKING[0])], max_length=200, source="d")


# Qwen 3.5: the generation prompt opens the thoughts, or with `enable_thinking=false` has an empty
# block, and thoughts are taken out of the text of an answer.
OPENED = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}"
    "{% set thoughts = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{{ '<|im_start|>assistant\n<think>\n' }}{% if '</think>' in m.content %}"
    "{{ thoughts }}{% endif %}{{ '\n</think>\n\n' }}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)


def test_thoughts_in_the_text_continue_where_the_generation_prompt_opens_them(folders, tmp_path):
    place = with_template(folders["byte-level"], OPENED, tmp_path / "m")
    encoder = load_encoder(place, 1, "chat")
    encoded = encoder.encode([conversation(THINKING[0])], max_length=200, source="d")
    prompt, target = (encoder.tokenizer.decode(ids) for ids in parts(encoded, 0))
    assert prompt.endswith("assistant\n<think>\n")
    assert target == "two and two\n</think>\n\n4<|im_end|>"
    # Only what the prompt holds may be missing.
    drops = OPENED.replace("{{ thoughts }}", "")
    encoder = load_encoder(with_template(folders["byte-level"], drops, tmp_path / "n"), 1, "chat")
    with pytest.raises(UserError, match=r"d:1: .* leaves out text of the last turn"):
        encoder.encode([conversation(THINKING[0])], max_length=200, source="d")


def test_the_switch_that_helps_is_named(folders, tmp_path):
    needs = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\n' }}{% endif %}"
        "{% endif %}"
    )
    encoder = load_encoder(with_template(folders["byte-level"], needs, tmp_path / "m"), 1, "chat")
    with pytest.raises(UserError, match=r"give --chat-template-kwargs '\{\"enable_thinking\": fal"):
        encoder.encode([conversation(PLAIN[0])], max_length=200, source="d")


REFUSED = {
    "no system role": ("no-system", SYSTEM, None, "refuses it: System role not supported"),
    "no alternation": (
        "alternates",
        [user("a"), user("b"), assistant("c")],
        None,
        "must alternate",
    ),
    "tools are not shown": ("chatml", PLAIN[0], TOOLS, "shows nothing of 'tools'"),
    "calls are not shown": (
        "chatml",
        [user("a"), assistant("Let me check.", tool_calls=[CALL])],
        None,
        "shows nothing of 'tool_calls'",
    ),
    "thoughts are not shown": (
        "chatml",
        [user("2+2?"), assistant("4", reasoning_content="two and two are four")],
        None,
        "shows nothing of 'reasoning_content'",
    ),
    "earlier calls are not shown": (
        "chatml",
        [user("a"), assistant("b", tool_calls=[CALL]), user("c"), assistant("d")],
        None,
        "shows nothing of 'tool_calls'",
    ),
    "an end in the text": (
        "chatml",
        [user("a"), assistant("b<|im_end|>\nc")],
        None,
        r"the last turn contains <\|im_end\|>, which ends a turn",
    ),
    "a latent in the text": ("chatml", [user("a <z1>"), assistant("b")], None, "spells a latent"),
    "nothing to learn": ("chatml", [user("a"), assistant("")], None, "has no token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_template_cannot_do_is_refused(case, folders, tmp_path):
    name, turns, tools, says = REFUSED[case]
    place = with_template(folders["byte-level"], TEMPLATES[name], tmp_path / "m")
    encoder = load_encoder(place, 1, "chat")
    records = [conversation(PLAIN[0]), conversation(turns, tools)]
    with pytest.raises(UserError, match=rf"^data.jsonl:2: .*{says}") as raised:
        encoder.encode(records, max_length=500, source="data.jsonl")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_text_that_the_template_leaves_out_is_refused(folders, tmp_path):
    drops = TEMPLATES["chatml"].replace("m.content", "m.content.split('</think>')[-1]")
    encoder = load_encoder(with_template(folders["byte-level"], drops, tmp_path / "m"), 1, "chat")
    with pytest.raises(UserError, match=r"d:1: .* leaves out text of the last turn"):
        encoder.encode([conversation(THINKING[0])], max_length=200, source="d")
    deaf = TEMPLATES["chatml"].replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    encoder = load_encoder(with_template(folders["byte-level"], deaf, tmp_path / "n"), 1, "chat")
    with pytest.raises(UserError, match=r"d:1: .* leaves out text of turn 1 \(system\)"):
        encoder.encode([conversation(SYSTEM)], max_length=200, source="d")
    known = TEMPLATES["chatml"].replace(
        "{% for m in messages %}", "{% for m in messages if m.role in ('user', 'assistant') %}"
    )
    encoder = load_encoder(with_template(folders["byte-level"], known, tmp_path / "o"), 1, "chat")
    critic = {"role": "critic", "content": "too short"}
    with pytest.raises(UserError, match=r"d:1: .* leaves out text of turn 2 \(critic\)"):
        encoder.encode(
            [conversation([user("a"), critic, assistant("b")])], max_length=200, source="d"
        )


def test_a_template_without_a_generation_prompt_is_reported(folders, tmp_path):
    silent = TEMPLATES["chatml"].split("{% if add_generation_prompt")[0]
    encoder = load_encoder(with_template(folders["byte-level"], silent, tmp_path / "m"), 1, "chat")
    encoded = encoder.encode([conversation(PLAIN[0])], max_length=200, source="d")
    (note,) = encoded.notes
    assert "writes no generation prompt, so y begins with '<|im_start|>assistant\\n'" in note


def test_several_templates_and_another_one_from_a_file(folders, tmp_path):
    tokenizer = reference(folders["byte-level"], TEMPLATES["chatml"])
    several = {"default": TEMPLATES["chatml"] + "\n", "tool_use": TEMPLATES["date"]}
    tokenizer.chat_template = several
    tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    encoder = load_encoder(str(tmp_path / "m"), 1, "chat")
    turns = [user("weather?"), assistant("4")]
    encoded = encoder.encode(
        [conversation(turns), conversation(turns, TOOLS)], max_length=500, source="d"
    )
    for row, (name, tools) in enumerate((("chatml", None), ("date", TOOLS))):
        alone = reference(folders["byte-level"], TEMPLATES[name])
        prompt, target, _ = expected(alone, name, turns, tools)
        assert parts(encoded, row)[0] == prompt and target in (None, parts(encoded, row)[1])
    (tmp_path / "own.jinja").write_text(TEMPLATES["alternates"])
    own = load_encoder(str(tmp_path / "m"), 1, str(tmp_path / "own.jinja"))
    _assert_texts_are_one_turn_each(
        own, reference(folders["byte-level"], TEMPLATES["alternates"]), "alternates"
    )


def test_fingerprint_and_hashes_follow_the_ids(folders, tmp_path):
    place = with_template(folders["byte-level"], TEMPLATES["thinks"], tmp_path / "m")
    records = [conversation(THINKING[1])]
    prints, hashes = [], []
    for settings in ({}, {"enable_thinking": False}):
        encoder = load_encoder(place, 1, "chat", settings)
        prints.append(encoder.fingerprint())
        hashes.append(encoder.encode(records, max_length=200, source="d").data_hash())
    assert prints[0] != prints[1] and hashes[0] != hashes[1]
    assert prints[0]["version"] == 2  # caches of x and y tokenised apart had 1


def _changed(folder, name, change):
    """Rewrites a JSON file of a folder."""
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


STORED = {
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    },
}
CONFIG = {
    "add_eos_token": True,
    "model_max_length": 4,
    "padding_side": "left",
    "clean_up_tokenization_spaces": True,
}


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "sentencepiece-oldest"])
def test_settings_that_tokenizers_are_saved_with_change_no_id(kind, folders, tmp_path):
    """Truncation, padding and an end token of a sentence model's use, and BPE dropout."""
    place = with_template(folders[kind], TEMPLATES["strips"], tmp_path / "m")
    encoder = load_encoder(place, 1, "chat")
    records = [conversation(turns) for turns in PLAIN]
    wanted = encoder.encode(records, max_length=500, source="d")
    _changed(tmp_path / "m", "tokenizer.json", lambda content: content.update(STORED))
    _changed(tmp_path / "m", "tokenizer.json", lambda content: content["model"].update(dropout=0.9))
    _changed(tmp_path / "m", "tokenizer_config.json", lambda content: content.update(CONFIG))
    encoder = load_encoder(place, 1, "chat")
    encoded = encoder.encode(records, max_length=500, source="d")
    assert encoded.ids.tolist() == wanted.ids.tolist()
    encoder.add_latents(2)
    encoder.save(tmp_path / "run", 2)
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    for turns in PLAIN:
        typed = saved.apply_chat_template(turns[:-1], add_generation_prompt=True, latent=1)
        assert typed["input_ids"] == encoder.prompt(conversation(turns), encoder.latent_ids(2)[1])


def test_special_tokens_that_are_split_are_refused(folders, tmp_path):
    place = with_template(folders["byte-level"], TEMPLATES["chatml"], tmp_path / "m")
    _changed(
        tmp_path / "m",
        "tokenizer_config.json",
        lambda content: content.update(split_special_tokens=True),
    )
    with pytest.raises(UserError, match="split_special_tokens, under which no chat template works"):
        load_encoder(place, 1, "chat")
