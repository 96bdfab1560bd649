"""Files as people have them: each kind of file and of record, and a broken one of each.

The files are written here after the public descriptions of the formats: TRL ("Dataset formats and
types"), LLaMA-Factory (data/README), the OpenAI API, hh-rlhf, GSM8K.
"""

import csv
import gzip
import io
import json
import tracemalloc

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from twcli.data.dataset import stream_examples
from twcli.errors import UserError

USER = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "You are terse."}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def lines(*records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def table(*records, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def columns(*records, **settings):
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), sink, **settings)
    return sink.getvalue()


def read(path, **fields):
    examples = stream_examples(str(path), **fields)
    return list(examples), examples.summary()


def said(example):
    """What is asked and answered: texts, or turns and tools."""
    if example.messages is None:
        return example.x, example.y
    return list(example.messages), example.tools


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


# name of the file, its bytes, (x, y) or (messages, tools) of each example, the line said of it
KINDS = {
    "JSON lines": (
        "d.jsonl",
        lines({"x": "é 😀", "y": "a\nb"}, {"x": "c", "y": "d"}),
        [("é 😀", "a\nb"), ("c", "d")],
        "x and y, 2 records",
    ),
    "messages": (
        "d.jsonl",
        lines(
            {"messages": [SYSTEM, USER, FOUR]},
            {"messages": [USER, FOUR, {"role": "user", "content": "3+3?"}, FOUR]},
        ),
        [
            ([SYSTEM, USER, FOUR], None),
            ([USER, FOUR, {"role": "user", "content": "3+3?"}, FOUR], None),
        ],
        "messages, 2 records, 3 to 4 turns",
    ),
    "messages with tools, a part of the content, and reasoning": (
        "d.jsonl",
        lines(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "weather in Paris?"}]},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "type": "function",
                                "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "1", "content": "rain"},
                    {"role": "assistant", "content": "Rain.", "reasoning_content": "it rains"},
                ],
                "tools": TOOLS,
                "source": "web",
            }
        ),
        [
            (
                [
                    {"role": "user", "content": "weather in Paris?"},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "1", "content": "rain"},
                    {"role": "assistant", "content": "Rain.", "reasoning_content": "it rains"},
                ],
                TOOLS,
            )
        ],
        "messages, 1 record, 4 turns; not read: source",
    ),
    "TRL, texts": (
        "d.jsonl",
        lines({"prompt": "The sky is", "completion": " blue."}),
        [("The sky is", " blue.")],
        "prompt-completion (prompt and completion), 1 record",
    ),
    "TRL, turns, in an array": (
        "d.json",
        json.dumps([{"prompt": [USER], "completion": [FOUR]}] * 2, indent=2).encode(),
        [([USER, FOUR], None)] * 2,
        "prompt-completion (prompt and completion), 2 records, 2 turns",
    ),
    "ShareGPT": (
        "d.json",
        json.dumps(
            [
                {
                    "id": "identity_0",
                    "system": "You are terse.",
                    "tools": json.dumps(TOOLS),
                    "conversations": [
                        {"from": "human", "value": "weather in Paris?"},
                        {
                            "from": "function_call",
                            "value": '{"name": "weather", "arguments": {"city": "Paris"}}',
                        },
                        {"from": "observation", "value": "rain"},
                        {"from": "gpt", "value": "Rain."},
                    ],
                }
            ]
        ).encode(),
        [
            (
                [
                    SYSTEM,
                    {"role": "user", "content": "weather in Paris?"},
                    {"role": "assistant", "content": "", "tool_calls": [CALL]},
                    {"role": "tool", "content": "rain"},
                    {"role": "assistant", "content": "Rain."},
                ],
                TOOLS,
            )
        ],
        "sharegpt, 1 record, 5 turns",
    ),
    "Alpaca, in an array written over several lines": (
        "d.json",
        json.dumps(
            [
                {"instruction": "Add", "input": "2 2", "output": "4"},
                {"instruction": "Say hello", "input": "", "output": "hello"},
                {
                    "instruction": "And 3?",
                    "input": "",
                    "output": "6",
                    "system": "You are terse.",
                    "history": [["2+2?", "4"]],
                },
            ],
            indent=2,
        ).encode(),
        [
            ("Add\n2 2", "4"),
            ("Say hello", "hello"),
            ([SYSTEM, USER, FOUR, *turns(("user", "And 3?"), ("assistant", "6"))], None),
        ],
        "alpaca, 3 records, 5 turns",
    ),
    "preferences": (
        "d.jsonl",
        lines(
            {"prompt": "2+2?", "chosen": "4", "rejected": "5", "score": 1.0},
            {"prompt": [USER], "chosen": [FOUR], "rejected": turns(("assistant", "5"))},
        ),
        [
            ("2+2?", "4"),
            ("2+2?", "5"),
            ([USER, FOUR], None),
            ([USER, *turns(("assistant", "5"))], None),
        ],
        "preference (chosen and rejected), 2 records, 4 completions, 2 turns; not read: score",
    ),
    "preferences without a prompt": (
        "d.jsonl",
        lines(
            {"chosen": "The sky is blue.", "rejected": "The sky is bright green."},
            {"chosen": [USER, FOUR], "rejected": [USER, *turns(("assistant", "5"))]},
            {
                "chosen": "\n\nHuman: 2+2?\n\nAssistant: It is 4",
                "rejected": "\n\nHuman: 2+2?\n\nAssistant: It is 5",
            },
        ),
        [
            ("The sky is ", "blue."),
            ("The sky is ", "bright green."),
            ([USER, FOUR], None),
            ([USER, *turns(("assistant", "5"))], None),
            ([USER, *turns(("assistant", "It is 4"))], None),
            ([USER, *turns(("assistant", "It is 5"))], None),
        ],
        "preference (chosen and rejected), 3 records, 6 completions, 2 turns",
    ),
    "several completions": (
        "d.jsonl.zst",
        zstandard.compress(
            lines(
                {"prompt": "2+2?", "completions": ["4", "four"]},
                {"prompt": "3+3?", "completions": [{"model": "a", "response": "6"}]},
            )
        ),
        [("2+2?", "4"), ("2+2?", "four"), ("3+3?", "6")],
        "several completions, 2 records, 3 completions",
    ),
    "a list as y, packed without the suffix": (
        "d.jsonl",
        gzip.compress(lines({"id": 1.5, "x": "2+2?", "y": ["4", "four"]})),
        [("2+2?", "4"), ("2+2?", "four")],
        "x and y, 1 record, 2 completions",
    ),
    "an answer that is context, after one that is learned": (
        "d.jsonl",
        lines(
            {"messages": [USER, FOUR, USER, {"role": "assistant", "content": "5", "weight": "0"}]}
        ),
        [([USER, FOUR], None)],
        "messages, 1 record, 2 turns; 1 continue after the assistant's last turn, which is not "
        "read",
    ),
    "turns in a field of another name": (
        "d.jsonl",
        lines({"id": 1, "dialog": [USER, FOUR]}),
        [([USER, FOUR], None)],
        "messages (dialog), 1 record, 2 turns",
    ),
    "GSM8K": (
        "d.jsonl",
        lines({"question": "Natalia sold 48 clips.", "answer": "She sold 48.\n#### 48"}),
        [("Natalia sold 48 clips.", "She sold 48.\n#### 48")],
        "question-answer (question and answer), 1 record",
    ),
    "CSV of a spreadsheet, with a mark, semicolons and lines in a cell": (
        "d.csv",
        b"\xef\xbb\xbf" + table({"x": "a;b", "y": 'c\nd "e"'}, {"x": "é", "y": "f"}, delimiter=";"),
        [("a;b", 'c\nd "e"'), ("é", "f")],
        "x and y, 2 records",
    ),
    "TSV with turns in a cell": (
        "d.tsv.gz",
        gzip.compress(table({"messages": json.dumps([USER, FOUR]), "n": 1}, delimiter="\t")),
        [([USER, FOUR], None)],
        "messages, 1 record, 2 turns; not read: n",
    ),
    "Parquet with turns": (
        "d.parquet",
        columns(
            {
                "messages": [
                    {"role": "user", "content": "2+2?", "tool_calls": None},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                ],
                "prompt_id": 1,
            },
            {"messages": [USER, FOUR], "prompt_id": 2},
        ),
        [
            ([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], None),
            ([USER, FOUR], None),
        ],
        "messages, 2 records, 2 turns; not read: prompt_id",
    ),
    "one object over several lines": (
        "d.jsonl",
        json.dumps({"x": "a", "y": "b"}, indent=2).encode() + b"\n" + lines({"x": "c", "y": "d"}),
        [("a", "b"), ("c", "d")],
        "x and y, 2 records",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_file(tmp_path, kind):
    reads_as(tmp_path, *KINDS[kind])


def reads_as(folder, name, data, expected, line):
    """A file with these bytes holds the expected records, and is described by the line."""
    file = folder / name
    file.write_bytes(data)
    found, summary = read(file)
    assert [said(example) for example in found] == expected
    assert summary == f"{file}: {line}"


BROKEN = {
    "JSON lines": (
        "d.jsonl",
        b'{"x": "a", "y": "b"}\n{"x": "a", "y": 3}\n',
        "d.jsonl:2: field 'y'",
    ),
    "an array that is cut off": ("d.json", b'[{"x": "a", "y": "b"},\n', "d.json:2: not valid JSON"),
    "an array without its end": (
        "d.json",
        b'[{"x": "a", "y": "b"}\n',
        "d.json: ends within the array, after record 1",
    ),
    "an array without a comma": (
        "d.json",
        b'[{"x": "a", "y": "b"}\n{"x": "a", "y": "c"}]',
        "d.json:2: expected a comma after record 1",
    ),
    "two arrays": ("d.json", b'[{"x": "a", "y": "b"}]\n[]', "d.json:2: more text after the end"),
    "an array with a number": (
        "d.json",
        b'[{"x": "a", "y": "b"}, 3]',
        "d.json: record 2: expected a JSON object",
    ),
    "an array with a mistake": (
        "d.json",
        b'[\n {"x": "a",\n  "y": "b"},\n {"x": "a",\n  "y": b}\n]',
        "d.json:5: not valid JSON at column 8, in record 2",
    ),
    "an array with a key twice": (
        "d.json",
        b'[\n{"x": "a", "x": "b"}]',
        "d.json:2: record 1: not valid JSON: key 'x' is given twice",
    ),
    "an array that is no UTF-8": (
        "d.json",
        b'[{"x": "a", "y": "b"},\n{"x": "\xff"}]',
        "d.json:2: is not UTF-8",
    ),
    "an object around the records": (
        "d.json",
        json.dumps({"version": 1, "data": [{"x": "a", "y": "b"}]}).encode(),
        "one object that holds the records in 'data'; write that list alone",
    ),
    "messages without an answer": (
        "d.jsonl",
        lines({"messages": [USER, FOUR]}, {"messages": [SYSTEM, USER]}),
        "d.jsonl:2: field 'messages' has no turn of the assistant, which is what is learned: "
        "system, user",
    ),
    "a turn without a role": (
        "d.jsonl",
        lines({"messages": [USER, {"content": "4"}]}),
        "d.jsonl:1: field 'messages[1]' must be a turn with 'role' and 'content'; it has: content",
    ),
    "a picture": (
        "d.jsonl",
        lines(
            {"messages": [{"role": "user", "content": [{"type": "image_url", "url": "a"}]}, FOUR]}
        ),
        "d.jsonl:1: field 'messages[0].content[0]' is of type image_url; only parts of text",
    ),
    "an answer that is context alone": (
        "d.jsonl",
        lines({"messages": [USER, {**FOUR, "weight": 0}]}),
        "d.jsonl:1: field 'messages' has no turn to learn: those of the assistant have weight 0",
    ),
    "turns with other keys": (
        "d.jsonl",
        lines({"messages": [{"speaker": "user", "text": "a"}]}),
        "d.jsonl:1: field 'messages[0]' must be a turn with 'role' and 'content'; it has: speaker, "
        "text",
    ),
    "a call as Anthropic writes it": (
        "d.jsonl",
        lines({"messages": [USER, {"role": "assistant", "content": [{"type": "tool_use"}]}]}),
        "d.jsonl:1: field 'messages[1].content[0]' is of type tool_use; only parts of text are "
        "read, so write it as the turn's tool_calls",
    ),
    "turns of Gemini": (
        "d.jsonl",
        lines({"contents": [{"role": "user", "parts": [{"text": "a"}]}]}),
        "it looks like turns of the Gemini API; write them as messages",
    ),
    "preferences of OpenAI": (
        "d.jsonl",
        lines({"input": {"messages": [USER]}, "preferred_output": [FOUR]}),
        "it looks like preferences of the OpenAI API; write them as prompt, chosen and rejected",
    ),
    "a prompt and a text": (
        "d.jsonl",
        lines({"prompt": "a", "text": "b"}),
        "it looks like prompts alone; draw completions with `twcli sample`, or name them with "
        "--y-field",
    ),
    "text that shows nothing": ("d.jsonl", lines({"x": "\u200b", "y": "b"}), "field 'x' is empty"),
    "Parquet with bytes": (
        "d.parquet",
        columns({"x": b"a", "y": "b"}),
        "d.parquet: record 1: field 'x' must be text, found bytes; give the column the type string",
    ),
    "tools that are none": (
        "d.jsonl",
        lines({"messages": [USER, FOUR], "tools": "a hammer"}),
        "d.jsonl:1: field 'tools' must be a list, or JSON of one",
    ),
    "TRL without a completion": (
        "d.jsonl",
        lines({"prompt": "a", "completion": "b"}, {"prompt": "a"}),
        "d.jsonl:2: field 'completion' is missing; it has: prompt",
    ),
    "ShareGPT with a speaker that is not known": (
        "d.jsonl",
        lines({"conversations": [{"from": "narrator", "value": "a"}]}),
        "d.jsonl:1: field 'conversations[0].from' is \"narrator\"; known are",
    ),
    "Alpaca with a number": (
        "d.jsonl",
        lines({"instruction": "Add", "input": 2, "output": "4"}),
        "d.jsonl:1: field 'input' must be text, found int",
    ),
    "a preference without its prompt": (
        "d.jsonl",
        lines({"chosen": "blue", "rejected": "green"}),
        "d.jsonl:1: field 'chosen' and 'rejected' do not begin alike",
    ),
    "an empty list of completions": (
        "d.jsonl",
        lines({"prompt": "a", "completions": []}),
        "d.jsonl:1: field 'completions' is an empty list",
    ),
    "a completion that is empty": (
        "d.jsonl",
        lines({"prompt": "a", "completions": ["b", " "]}),
        "d.jsonl:1: field 'completions[1]' is empty",
    ),
    "a question without an answer": (
        "d.jsonl",
        lines({"question": "a", "answer": None}),
        "d.jsonl:1: field 'answer' is null; give text, remove the record, or leave all such out",
    ),
    "CSV with a cell too many": (
        "d.csv",
        b"x,y\r\na,b\r\na,b,c\r\n",
        "d.csv:3: 3 cells, but the header has 2 columns; put text with ',' or a line break",
    ),
    "CSV with a quote that is not closed": ("d.csv", b'x,y\n"a,b\n', "d.csv:2: not valid CSV"),
    "CSV with a column twice": ("d.csv", b"x,x\na,b\n", "d.csv:1: column 'x' is given twice"),
    "CSV of another encoding": ("d.csv", b"x,y\na,\xe9\n", "d.csv:2: byte 3 is not UTF-8"),
    "CSV with an empty cell": ("d.csv", b"x,y\na,b\na,\n", "d.csv:3: field 'y' is empty"),
    "TSV without a header": ("d.tsv", b"2+2?\t4\n3+3?\t6\n", "d.tsv:2: format not recognised"),
    "Parquet that is cut off": (
        "d.parquet",
        columns({"x": "a", "y": "b"})[:-20],
        "d.parquet: not valid Parquet",
    ),
    "Parquet with a number": (
        "d.parquet",
        columns({"x": "a", "y": 3}),
        "d.parquet: record 1: field 'y' must be text, found int",
    ),
    "gzip that is cut off": (
        "d.jsonl",
        gzip.compress(lines({"x": "a", "y": "b"}) * 1000)[:-20],
        "d.jsonl: cannot be read: Compressed file ended",
    ),
    "Zstandard that is broken": ("d.jsonl.zst", b"no", "d.jsonl.zst: cannot be read: "),
    "text for a language model": (
        "d.jsonl",
        lines({"text": "a b c", "meta": {}}),
        "d.jsonl:1: format not recognised: the fields are text, meta; it looks like text without a "
        "prompt (language modelling); split each text into x and y, or write it as messages",
    ),
    "tokens": ("d.jsonl", lines({"input_ids": [1], "labels": [1]}), "it looks like tokens; give"),
    "prompts alone": ("d.jsonl", lines({"prompt": "a"}), "it looks like prompts alone; draw"),
    "other names": (
        "d.jsonl",
        lines({"frage": "a", "antwort": "b"}),
        "the fields are frage, antwort; name its fields with --x-field and --y-field, or its "
        "format with --format",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_one_is_one_line(tmp_path, kind):
    name, data, line = BROKEN[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    message = str(caught.value)
    assert line in message and str(tmp_path) in message and "\n" not in message


def test_a_wrong_guess_is_overruled(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(lines({"x": "a", "y": "b", "messages": [USER, FOUR], "q": "c", "r": ["d"]}))
    assert said(read(file)[0][0]) == ("a", "b")
    assert said(read(file, format="messages")[0][0]) == ([USER, FOUR], None)
    assert said(read(file, x_field="q", y_field="r")[0][0]) == ("c", "d")
    with pytest.raises(UserError, match="field 'prompt' is missing; it has: x, y"):
        read(file, format="prompt-completion")
    with pytest.raises(UserError, match="--format messages: has field names of its own"):
        read(file, format="messages", x_field="q")


def test_several_files(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(lines({"x": "b", "y": "1"}))
    (tmp_path / "a.jsonl").write_bytes(lines({"x": "a", "y": "2"}))
    (tmp_path / "c.csv").write_bytes(table({"question": "c", "answer": "3"}))
    found, summary = read(f"{tmp_path}/*.jsonl")
    assert [e.x for e in found] == ["a", "b"] and ": x and y, 2 records" in summary
    found, summary = read(f"{tmp_path}/b.jsonl,{tmp_path}/*.csv")
    assert [e.x for e in found] == ["b", "c"]
    assert summary.endswith(": x and y and question-answer (question and answer), 2 records")
    assert [e.where for e in found] == [f"{tmp_path}/b.jsonl:1", f"{tmp_path}/c.csv:2"]
    odd = tmp_path / "a,b [1].jsonl"
    odd.write_bytes(lines({"x": "odd", "y": "4"}))
    assert read(odd)[0][0].x == "odd"
    with pytest.raises(UserError, match=r"none\*\.jsonl: no file matches"):
        read(f"{tmp_path}/none*.jsonl")
    with pytest.raises(UserError, match=r"none\.jsonl: no such file; --data takes"):
        read(f"{tmp_path}/b.jsonl,{tmp_path}/none.jsonl")


def test_prompts_alone(tmp_path):
    file = tmp_path / "d.jsonl"
    for record, prompt in [
        ({"prompt": "a"}, ("a", "")),
        ({"x": "a", "y": 3}, ("a", "")),
        ({"prompt": [SYSTEM, USER]}, ([SYSTEM, USER], None)),
        ({"messages": [SYSTEM, USER, FOUR], "tools": TOOLS}, ([SYSTEM, USER], TOOLS)),
        ({"messages": [USER]}, ([USER], None)),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("a", "")),
        ({"question": "a"}, ("a", "")),
        ({"instruction": "a", "input": "b"}, ("a\nb", "")),
        ({"prompt": "a", "completions": ["b", "c"]}, ("a", "")),
    ]:
        file.write_bytes(lines(record))
        found, _ = read(file, y_field=None)
        assert [said(e) for e in found] == [prompt], record


def test_turns_after_the_last_answer_are_said(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(lines({"messages": [USER, FOUR, {"role": "user", "content": "Thanks"}]}))
    found, summary = read(file)
    assert list(found[0].messages) == [USER, FOUR]
    assert summary.endswith(
        "2 turns; 1 continue after the assistant's last turn, which is not read"
    )


def test_preferences_that_hold_the_whole_conversation(tmp_path):
    file = tmp_path / "d.jsonl"
    record = {"prompt": "2+2?", "chosen": [USER, FOUR], "rejected": [USER, FOUR]}
    file.write_bytes(lines(record))
    assert [said(e) for e in read(file)[0]] == [([USER, FOUR], None)] * 2
    file.write_bytes(lines({**record, "prompt": "something else"}))
    with pytest.raises(UserError, match="'chosen' is a whole conversation, in which the record's"):
        read(file)


@pytest.mark.parametrize("cut", range(1, 60))
def test_records_of_an_array_do_not_depend_on_where_it_is_cut(tmp_path, monkeypatch, cut):
    records = [
        {"x": 'é "\\ 😀', "y": "b", "n": [1.5e3, -1, True, None]},
        {"x": "c", "y": "d" * 20},
    ]
    file = tmp_path / "d.json"
    file.write_bytes(json.dumps(records, ensure_ascii=cut % 2 == 0, indent=cut % 3).encode())
    monkeypatch.setattr("twcli.data.json_records.WINDOW", cut)
    assert [(e.x, e.y) for e in read(file)[0]] == [(r["x"], r["y"]) for r in records]


def test_a_long_array_is_read_in_constant_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("twcli.data.json_records.WINDOW", 2**14)
    file = tmp_path / "d.json"
    with file.open("w") as out:
        out.write("[" + ",\n".join(json.dumps({"x": f"{i}", "y": "b" * 400}) for i in range(5_000)))
        out.write("]")
    tracemalloc.start()
    count = sum(1 for _ in stream_examples(str(file)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 5_000 and peak < file.stat().st_size / 10
