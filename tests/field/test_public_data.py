"""Records with the fields that published data sets have, in words of our own: what a person takes
for prompt and completion is taken for it, or one option says what is.
"""

import json

import pytest

from tests.field.test_files import CALL, FOUR, TOOLS, USER, lines, read, reads_as, said, table
from twcli.data.dataset import stream_examples
from twcli.errors import UserError

SPELLED = json.dumps([CALL["function"]])

# name of the file, its bytes, (x, y) or (messages, tools) of each example, the line said of it
KINDS = {
    "E2E: references of a meaning, a row each": (
        "d.csv",
        table({"mr": "name[A], area[B]", "ref": "A is in B."})
        + b'"name[A], area[B]","In B, there is A."\n',
        [("name[A], area[B]", "A is in B."), ("name[A], area[B]", "In B, there is A.")],
        "question-answer (mr and ref), 2 records",
    ),
    "names in capitals": (
        "d.csv",
        table({"Question": "2+2?", "Answer": "4", "Grade": 1}),
        [("2+2?", "4")],
        "question-answer (Question and Answer), 1 record; not read: Grade",
    ),
    "names with capitals and spaces": (
        "d.csv",
        table({"Meaning Representation": "name[A]", "Human Reference": "A."}),
        [("name[A]", "A.")],
        "question-answer (Meaning Representation and Human Reference), 1 record",
    ),
    "a solution beside the answer": (
        "d.jsonl",
        lines({"problem": "2+2?", "solution": "It is 4.", "answer": "4", "source": "s"}),
        [("2+2?", "It is 4.")],
        "question-answer (problem and solution), 1 record; not read: source",
    ),
    "a second answer that is not taken": (
        "d.jsonl",
        lines({"question": "2+2?", "answer": "4", "response": "four"}),
        [("2+2?", "4")],
        "question-answer (question and answer), 1 record; not read: response",
    ),
    "HumanEval": (
        "d.jsonl",
        lines({"task_id": "t/0", "prompt": "def f():", "canonical_solution": "  return 1"}),
        [("def f():", "  return 1")],
        "question-answer (prompt and canonical_solution), 1 record; not read: task_id",
    ),
    "summaries": (
        "d.jsonl",
        lines({"article": "long", "highlights": "short"}),
        [("long", "short")],
        "question-answer (article and highlights), 1 record",
    ),
    "NoveltyBench: generations": (
        "d.jsonl",
        lines(
            {"id": "c-0", "prompt": "A name?", "model": "m", "generations": ["Ann", "Bo", "Ann"]}
        ),
        [("A name?", "Ann"), ("A name?", "Bo"), ("A name?", "Ann")],
        "several completions, 1 record, 3 completions; not read: model",
    ),
    "references beside a completion are not completions": (
        "d.jsonl",
        lines({"prompt": "2+2?", "completion": "4", "references": ["four"]}),
        [("2+2?", "4")],
        "prompt-completion (prompt and completion), 1 record; not read: references",
    ),
    "AlpacaFarm: completions with numbers": (
        "d.json",
        json.dumps(
            [{"instruction": "Add.", "input": "2 2", "output_1": "4", "output_2": "four", "n": 1}]
        ).encode(),
        [("Add.\n2 2", "4"), ("Add.\n2 2", "four")],
        "several completions, 1 record, 2 completions; not read: n",
    ),
    "completions with letters, of turns": (
        "d.jsonl",
        lines({"messages": [USER], "response_a": "4", "response_b": "four"}),
        [([USER, FOUR], None), ([USER, {"role": "assistant", "content": "four"}], None)],
        "several completions, 1 record, 2 completions, 2 turns",
    ),
    "LLaMA-Factory: parts with values, preferences": (
        "d.jsonl",
        lines(
            {
                f"{name}_messages": [
                    {"role": "user", "content": [{"type": "text", "value": "2+2?"}]},
                    {"role": "assistant", "content": [{"type": "text", "value": answer}]},
                ]
                for name, answer in (("chosen", "4"), ("rejected", "5"))
            }
        ),
        [([USER, FOUR], None), ([USER, {"role": "assistant", "content": "5"}], None)],
        "preference (chosen and rejected), 1 record, 2 completions, 2 turns",
    ),
    "LLaMA-Factory: reasoning and calls as parts": (
        "d.jsonl",
        lines(
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "reasoning", "value": "a sum"},
                            {"type": "tool_call", "value": SPELLED},
                        ],
                    },
                ],
                "tools": json.dumps(TOOLS),
            }
        ),
        [
            (
                [
                    USER,
                    {
                        "role": "assistant",
                        "content": "",
                        "reasoning_content": "a sum",
                        "tool_calls": [CALL],
                    },
                ],
                TOOLS,
            )
        ],
        "messages, 1 record, 2 turns",
    ),
    "calls of tools as text": (
        "d.jsonl",
        lines({"query": "2+2?", "tools": json.dumps(TOOLS), "answers": [SPELLED]}),
        [([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}], TOOLS)],
        "several completions, 1 record, 2 turns",
    ),
    "a list in Python's notation that is what the record is about": (
        "d.jsonl",
        lines({"instruction": "Sort.", "input": "[{'name': 'A'}, {'name': 'B'}]", "output": "ok"}),
        [("Sort.\n[{'name': 'A'}, {'name': 'B'}]", "ok")],
        "alpaca, 1 record",
    ),
    "JSON that kept the name of a packed file": (
        "d.jsonl.gz",
        lines({"x": "a", "y": "b"}),
        [("a", "b")],
        "x and y, 1 record",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_published_data(tmp_path, kind):
    reads_as(tmp_path, *KINDS[kind])


@pytest.mark.parametrize(
    ("record", "named", "expected"),
    [
        (
            {"question": "2+2?", "options": ["A)4"], "rationale": "It is 4."},
            {"y_field": "rationale"},
            [("2+2?", "It is 4.")],
        ),
        (
            {"instruction": "Add.", "input": "2 2", "output": "4", "long": ["It is 4.", "Four."]},
            {"y_field": "long"},
            [("Add.\n2 2", "It is 4."), ("Add.\n2 2", "Four.")],
        ),
        ({"messages": [USER], "said": [FOUR]}, {"y_field": "said"}, [([USER, FOUR], None)]),
        ({"brief": "2+2?", "answer": "4"}, {"x_field": "brief"}, [("2+2?", "4")]),
    ],
)
def test_one_option_names_the_field_that_is_not_known(tmp_path, record, named, expected):
    (tmp_path / "d.jsonl").write_bytes(lines(record, record))
    found, _ = read(tmp_path / "d.jsonl", **named)
    assert [said(example) for example in found] == expected * 2


def test_both_options_name_fields_whatever_else_there_is(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(lines({"prompt": "a", "hint": "b", "gold": "c"}))
    found, summary = read(tmp_path / "d.jsonl", x_field="hint", y_field="gold")
    assert [said(e) for e in found] == [("b", "c")] and "not read: prompt" in summary


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"MR": "name[A]"}, "name[A]"),
        ({"Instruction": "Say hi.", "Skill": "Chat"}, "Say hi."),
        ({"question": [[USER]], "function": [{"name": "f"}]}, "2+2?"),
    ],
)
def test_prompts_alone(tmp_path, record, expected):
    file = tmp_path / "d.jsonl"
    file.write_bytes(lines(record))
    (example,) = stream_examples(str(file), y_field=None)
    assert example.x == expected
    with pytest.raises(UserError, match="it looks like prompts alone; draw completions with `twcl"):
        read(file)


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        (
            "d.tsv",
            b"what do you do for a living ?\ti am a cook .\nand you ?\ti bake .\n",
            "it looks like a table without a header; put a line with the columns' names before it",
        ),
        (
            "d.jsonl",
            lines({"message_id": "1", "parent_id": None, "text": "hi", "role": "prompter"}),
            "it looks like messages of a tree (OASST); write each path from its root as messages",
        ),
        (
            "d.jsonl",
            lines(*[{"id": n, "annotations": [{"text": "a"}]} for n in "ab"]),
            "where 'annotations' holds the completions, write a record for each of them",
        ),
        ("d.json", lines({"data": [{"a": "b"}]}), "one object that holds the records in 'data'"),
        ("d.jsonl", b'"a prompt"\n', 'found str; write {"x": ..} for a prompt alone'),
        (
            "d.jsonl",
            lines({"question": "2+2?", "answer": 4.0}),
            "d.jsonl:1: field 'answer' must be text, found float; write the number as text",
        ),
        ("d.jsonl.gz", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path, name, data, line):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_all_records_without_a_completion_are_named_at_once(tmp_path):
    """Alpaca has some in 52,000: one call says which to remove."""
    good, empty = {"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}
    file = tmp_path / "d.jsonl"
    file.write_bytes(lines(good, empty, good, empty, {"instruction": "a"}))
    with pytest.raises(UserError) as caught:
        read(file)
    advice = "give text, remove the record, or leave all such out with --empty skip"
    said = f"field 'output' is empty; {advice}; 1 other of the file as well: 4"
    assert str(caught.value) == f"{file}:2: {said}"
    file.write_text(json.dumps([good, *[empty] * 30]))
    with pytest.raises(
        UserError, match=r"d\.jsonl: record 2: .* 29 others .*: record 3, .*22, \.\.$"
    ):
        read(file)
    file.write_bytes(
        lines({"messages": [USER, FOUR]}, {"messages": [USER, {**FOUR, "content": " "}]})
    )
    with pytest.raises(UserError, match=r"'messages\[1\].content' is empty; give .* --empty skip$"):
        read(file)
