"""Chat templates that take a latent, rendered by transformers."""

import pytest
from jinja2 import TemplateError

from tests.conftest import make_tokenizer
from twcli.data import latent_chat
from twcli.errors import UserError

# With what makes templates hard to extend: a loop, a macro that reads `messages`, a newline at the
# end that Jinja drops, space before a block, and a system turn of its own.
OWN = (
    "  {% if messages[0]['role'] != 'system' %}\n[sys]default\n{% endif %}\n"
    "{% macro first() %}{{ messages[0]['role'] }}{% endmacro %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "({{ first() }})\n  {% if add_generation_prompt %}[assistant]\n{% endif %}\n"
)
QUESTION = [{"role": "user", "content": "w1 w2"}]
FOUND = latent_chat.sections(3, 1, {0: "terse", 2: 'a "quoted" %} name\\n @LEAD@'})


def system(text):
    return [{"role": "system", "content": text}, *QUESTION]


@pytest.fixture
def render():
    tokenizer = make_tokenizer()
    template = latent_chat.with_latents(OWN, FOUND, "1")

    def call(messages, chat_template=template, **settings):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=chat_template, **settings
        )

    return call


@pytest.mark.parametrize(
    ("latent", "section"),
    [
        (2, "<z><z2></z>"),
        ("2", "<z><z2></z>"),
        ("terse", "<z><z0></z>"),
        ('a "quoted" %} name\\n @LEAD@', "<z><z2></z>"),
        ("router", "<z>"),
        (None, "<z><z1></z>"),
    ],
)
def test_the_section_follows_the_generation_prompt(render, latent, section):
    prompt = render(QUESTION, OWN, add_generation_prompt=True)
    assert prompt.endswith("(user)\n[assistant]\n")
    assert render(QUESTION, latent=latent, add_generation_prompt=True) == prompt + section
    if latent is not None:
        messages = system(f"latent: {latent}")
        assert render(messages, add_generation_prompt=True) == prompt + section


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_without_a_default_and_a_latent_the_template_is_as_it_was(render, end):
    own = OWN.rstrip("\n") + end
    template = latent_chat.with_latents(own, FOUND)
    prompt = render(QUESTION, own, add_generation_prompt=True)
    for latent, section in [(None, ""), (2, "<z><z2></z>"), ("terse", "<z><z0></z>")]:
        settings = {"latent": latent, "add_generation_prompt": True}
        assert render(QUESTION, template, **settings) == prompt + section
    assert render(QUESTION, template, latent=2) == render(QUESTION, own)
    assert render(system("latent: 2"), template) == render(system("latent: 2"), own)
    assert latent_chat.with_latents(template, FOUND) == template
    back = latent_chat.without_latents(template)
    assert render(QUESTION, back, add_generation_prompt=True) == prompt
    with pytest.raises(TemplateError, match="latent 7 is unknown; this model has 0, 1, 2, router"):
        render(QUESTION, template, latent=7, add_generation_prompt=True)


def test_without_a_generation_prompt_the_template_is_as_it_was(render):
    turns = [*QUESTION, {"role": "assistant", "content": "w3"}]
    assert render(turns) == render(turns, OWN)
    assert render(turns, latent=2) == render(turns, OWN)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("latent: 2", None),
        ("latent: 2\n\n", None),
        ("latent:2\r\nBe kind.\nlatent: 1", "Be kind.\nlatent: 1"),
        ("latent: 2\n  Two  spaces", "  Two  spaces"),
    ],
)
def test_a_system_line_names_the_latent_and_is_dropped(render, text, left):
    rest = QUESTION if left is None else system(left)
    wanted = render(rest, OWN, add_generation_prompt=True) + "<z><z2></z>"
    assert render(system(text), add_generation_prompt=True) == wanted
    assert render(system(text), latent=0, add_generation_prompt=True) == wanted


def test_a_system_message_in_parts_is_read_too(render):
    parts = [{"type": "text", "text": "latent: 2"}]
    wanted = render(QUESTION, OWN, add_generation_prompt=True) + "<z><z2></z>"
    assert render(system(parts), add_generation_prompt=True) == wanted
    more = [*parts, {"type": "text", "text": "Be kind."}]
    assert render(system(more), add_generation_prompt=True) == (
        render(system(more[1:]), OWN, add_generation_prompt=True) + "<z><z2></z>"
    )


@pytest.mark.parametrize("text", ["Be kind.\nlatent: 2", "Latent 2", "a latent: 2"])
def test_other_system_messages_are_left_alone(render, text):
    wanted = render(system(text), OWN, add_generation_prompt=True) + "<z><z1></z>"
    assert render(system(text), add_generation_prompt=True) == wanted


@pytest.mark.parametrize("latent", [3, -1, "kind", "", True, "router "])
def test_an_unknown_latent_is_refused(render, latent):
    if latent == "router ":  # space around a name does not count
        assert render(QUESTION, latent=latent, add_generation_prompt=True).endswith("<z>")
        return
    with pytest.raises(TemplateError, match=r"unknown; this model has 0, 1, 2, router, terse"):
        render(QUESTION, latent=latent, add_generation_prompt=True)


def test_one_turn_becomes_the_prompt_of_training(render):
    frame = '<bos>"<x>{x}</x> {{ z }} {z}<y>{y}</y>\n'
    template = latent_chat.one_turn(frame, FOUND, "1")
    x = "w1 {x} {{ messages }}\n"
    turn = [{"role": "user", "content": x}]
    assert render(turn, template, latent=2, add_generation_prompt=True) == (
        f'<bos>"<x>{x}</x> {{{{ z }}}} <z><z2></z><y>'
    )
    assert render(turn, template, latent="router", add_generation_prompt=True).endswith("}} <z>")
    parts = [{"role": "user", "content": [{"text": "w1 {x}"}, {"text": " {{ messages }}\n"}]}]
    for messages in (turn, parts):
        both = render([*messages, {"role": "assistant", "content": "w3"}], template)
        assert both == f'<bos>"<x>{x}</x> {{{{ z }}}} <z><z1></z><y>w3</y>\n'


@pytest.mark.parametrize(
    "messages",
    [QUESTION * 2, system("Be kind."), [{"role": "assistant", "content": "w1"}], QUESTION * 3],
)
def test_one_turn_refuses_what_it_was_not_trained_on(render, messages):
    template = latent_chat.one_turn("<x>{x}</x>{z}<y>{y}</y>", FOUND, "1")
    with pytest.raises(TemplateError, match="one user turn"):
        render(messages, template, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({3: "far"}, "the run has the latents 0 to 2"),
        ({0: ""}, "1 to 64 characters"),
        ({0: " terse"}, "without space around it"),
        ({0: "x" * 65}, "1 to 64 characters"),
        ({0: "two\nlines"}, "one line"),
        ({0: "1"}, "no number"),
        ({0: "router"}, "is taken already"),
        ({0: "same", 1: "same"}, "is taken already"),
    ],
)
def test_names_that_cannot_be_distinguished_from_others_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        latent_chat.sections(3, 1, names)


def test_latents_of_several_tokens_are_spelled_out():
    assert latent_chat.sections(2, 2, {}) == {
        "0": "<z><z0.0><z0.1></z>",
        "1": "<z><z1.0><z1.1></z>",
        "router": "<z>",
    }
