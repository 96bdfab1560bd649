import json

import pytest

from twcli.data.turns import conversation, prompt_text, text_of, turns_of
from twcli.errors import UserError


def test_roles_and_contents_become_those_of_templates():
    value = [
        {"role": "human", "content": "a", "name": None},
        {"role": "gpt", "content": ["b", {"text": "c"}], "weight": 1},
        {"role": "tool", "content": {"t": 1}},
        {"role": "critic", "content": "d"},
    ]
    assert turns_of(value, "messages", "f:1") == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bc", "weight": 1},
        {"role": "tool", "content": {"t": 1}},
        {"role": "critic", "content": "d"},
    ]


@pytest.mark.parametrize(
    ("value", "calls"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', [{"name": "f", "arguments": {"a": 1}}]),
        (
            '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
            [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}],
        ),
        ("f(1)", None),
    ],
)
def test_calls_that_a_text_spells(value, calls):
    (turn,) = turns_of([{"from": "function_call", "value": value}], "conversations", "f:1")
    assert turn["role"] == "assistant"
    if calls is None:
        assert turn["content"] == value
    else:
        assert [call["function"] for call in turn["tool_calls"]] == calls


def test_a_function_turn_is_a_call_or_a_result():
    turns = turns_of(
        [
            {"from": "function", "value": '{"name": "f", "arguments": {}}'},
            {"from": "function", "value": '{"result": 1}'},
        ],
        "conversations",
        "f:1",
    )
    assert [turn["role"] for turn in turns] == ["assistant", "tool"]


def test_calls_as_the_openai_api_wrote_them_first_are_calls_of_tools():
    said = {"name": "f", "arguments": '{"a": 1}'}
    turns = turns_of(
        [
            {"role": "assistant", "content": None, "function_call": said},
            {"role": "function", "name": "f", "content": "4"},
            {"role": "assistant", "content": None, "function_call": json.dumps(said)},
            {"role": "function_call", "content": json.dumps(said)},
        ],
        "messages",
        "f:1",
    )
    assert [turn["role"] for turn in turns] == ["assistant", "tool", "assistant", "assistant"]
    assert turns[1] == {"role": "tool", "name": "f", "content": "4"}
    calls = [turn["tool_calls"] for turn in turns if "tool_calls" in turn]
    assert calls == [[{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]] * 3
    assert all("function_call" not in turn for turn in turns)
    with pytest.raises(
        UserError, match=r"'messages\[0\].function_call' must be a call with 'name'"
    ):
        turns_of([{"role": "assistant", "function_call": {"a": 1}}], "messages", "f:1")


def test_the_text_of_a_prompt_shows_all_of_it():
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
    turn = {"role": "assistant", "content": "b", "reasoning_content": "r", "tool_calls": [call]}
    assert text_of(turn) == 'r\n\nb\n\n{"name": "f", "arguments": {"a": "é"}}'
    user = {"role": "user", "content": "a"}
    assert prompt_text([user], None) == "a"
    assert prompt_text([user], [{"name": "f"}]) == 'tools: [{"name": "f"}]\n\nuser: a'
    assert prompt_text([{"role": "system", "content": "s"}, user], None) == "system: s\n\nuser: a"


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([{"role": "assistant", "content": "a"}], "has no turn before the assistant's"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            r"'messages\[1\].content' is empty",
        ),
        (
            [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}],
            "has no text before",
        ),
    ],
)
def test_conversations_that_teach_nothing(turns, says):
    with pytest.raises(UserError, match=says):
        conversation(turns, None, "messages", "f:1", True)
