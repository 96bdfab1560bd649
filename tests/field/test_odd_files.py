"""Files that are odd in the ways that files of other systems, tools and people are: each is read as
what it means, or refused in one line with its place.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow
import pytest
import zstandard

from tests.field.test_files import (
    CALL,
    FOUR,
    SYSTEM,
    TOOLS,
    USER,
    columns,
    lines,
    read,
    said,
    turns,
)
from twcli.errors import UserError

PAIR = {"x": "é 😀", "y": "b"}
TWO = [("é 😀", "b"), ("c", "d")]
JSONL = lines(PAIR, {"x": "c", "y": "d"})
ARRAY = json.dumps([PAIR, {"x": "c", "y": "d"}], ensure_ascii=False, indent=1).encode()
TABLE = "x,y\r\né 😀,b\r\nc,d\r\n"
ASKED = [([USER, FOUR], None)]


def tar(data):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        entry = tarfile.TarInfo("d.jsonl")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def zipped(data):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("d.jsonl", data)
    return sink.getvalue()


def arrow(kind):
    sink, table = io.BytesIO(), pyarrow.table({"x": ["a"], "y": ["b"]})
    with kind(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def cells(**row):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow(row)
    return text.getvalue().encode()


def recoded(data, encoding):
    return data.decode().encode(encoding)


READ = {
    # of other systems
    "CR LF": ("d.jsonl", JSONL.replace(b"\n", b"\r\n"), TWO),
    "CR alone": ("d.jsonl", JSONL.replace(b"\n", b"\r"), TWO),
    "a mark": ("d.jsonl", b"\xef\xbb\xbf" + JSONL, TWO),
    "a mark before an array with CR LF": (
        "d.json",
        b"\xef\xbb\xbf" + ARRAY.replace(b"\n", b"\r\n"),
        TWO,
    ),
    "marks of files that were joined": (
        "d.jsonl",
        b"\n".join([JSONL, b"\xef\xbb\xbf" + JSONL]),
        TWO * 2,
    ),
    "UTF-16 as PowerShell writes it": ("d.jsonl", recoded(JSONL, "utf-16"), TWO),
    "UTF-16 the other way round, packed": (
        "d.jsonl.gz",
        gzip.compress(b"\xfe\xff" + recoded(JSONL, "utf-16-be")),
        TWO,
    ),
    "UTF-16 without a mark": ("d.json", recoded(ARRAY, "utf-16-le"), TWO),
    "UTF-32": ("d.jsonl", recoded(JSONL, "utf-32"), TWO),
    "a table in UTF-16": ("d.tsv", TABLE.replace(",", "\t").encode("utf-16"), TWO),
    "a table with CR alone": ("d.csv", TABLE.replace("\r\n", "\r").encode(), TWO),
    "a table whose first line names the delimiter": (
        "d.csv",
        ("sep=;\r\n" + TABLE.replace(",", ";")).encode(),
        TWO,
    ),
    "a table with an index": ("d.csv", ",x,y\n0,é 😀,b\n1,c,d\n".encode(), TWO),
    "a table with spaces in its header and empty columns": (
        "D.CSV",
        "\n x , y ,,\né 😀,b,,\nc,d,,\n".encode(),
        TWO,
    ),
    "quotes and line ends in a cell of TSV": (
        "d.tsv",
        b'x\ty\n"a\tb ""c""\r\nd\re"\tsay "f"\n',
        [('a\tb "c"\r\nd\re', 'say "f"')],
    ),
    # of people and programs
    "no line end after the last record": ("d.jsonl", JSONL.rstrip(b"\n"), TWO),
    "blank lines": ("d.jsonl", b"\n \n" + JSONL.replace(b"\n", b"\n\r\n\n"), TWO),
    "blank lines before an array": ("d.json", b"\n\n" + ARRAY, TWO),
    "no line end between two files": ("d.jsonl", JSONL.rstrip(b"\n") + JSONL, TWO * 2),
    "NaN and numbers that are too large, in a field that is not read": (
        "d.ndjson",
        b'{"x": "a", "y": "b", "s": NaN, "t": -Infinity, "u": 1e999, "v": ' + b"9" * 4000 + b"}\n",
        [("a", "b")],
    ),
    "bzip2": ("d.jsonl.bz2", bz2.compress(JSONL), TWO),
    "xz without its suffix": ("d.jsonl", lzma.compress(JSONL), TWO),
    "Zstandard in frames": (
        "d.csv.zst",
        zstandard.compress(TABLE.encode()[:20]) + zstandard.compress(TABLE.encode()[20:]),
        TWO,
    ),
    # conversations
    "roles in capitals": (
        "d.jsonl",
        lines({"messages": [{**USER, "role": "User"}, {**FOUR, "role": "Assistant "}]}),
        ASKED,
    ),
    "ShareGPT with a system turn and OpenAI's names of fields": (
        "d.jsonl",
        lines(
            {
                "conversations": [
                    {"from": "System", "value": "You are terse."},
                    {"from": "Human", "content": "2+2?"},
                    {"from": "gpt", "text": "4"},
                ]
            }
        ),
        [([SYSTEM, USER, FOUR], None)],
    ),
    "OpenAI's roles and ShareGPT's names of fields": (
        "d.jsonl",
        lines({"conversation": [{"role": "user", "value": "2+2?"}, FOUR]}),
        ASKED,
    ),
    "turns by columns, as older versions of datasets give them": (
        "d.jsonl",
        lines({"messages": {"role": ["user", "assistant"], "content": ["2+2?", "4"]}}),
        ASKED,
    ),
    "Alpaca with an input of white space": (
        "d.json",
        json.dumps([{"instruction": "a", "input": " \n", "output": "b", "system": " "}]).encode(),
        [("a", "b")],
    ),
    "turns as JSON in the cells of a table": (
        "d.csv",
        cells(prompt=json.dumps([SYSTEM, USER]), completion=json.dumps([FOUR])),
        [([SYSTEM, USER, FOUR], None)],
    ),
    "preferences as turns in JSON in Parquet": (
        "d.parquet",
        columns({"chosen": json.dumps([USER, FOUR]), "rejected": json.dumps([USER, FOUR])}),
        ASKED * 2,
    ),
    "a preference whose completions are single turns": (
        "d.jsonl",
        lines({"prompt": "2+2?", "chosen": FOUR, "rejected": turns(("assistant", "5"))[0]}),
        [*ASKED, ([USER, *turns(("assistant", "5"))], None)],
    ),
    "calls of tools as JSON in a string, in a table": (
        "d.csv",
        cells(
            messages=json.dumps(
                [
                    USER,
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": json.dumps(
                            [
                                {
                                    "type": "function",
                                    "function": {
                                        "name": "weather",
                                        "arguments": '{"city": "Paris"}',
                                    },
                                }
                            ]
                        ),
                    },
                ]
            ),
            tools=json.dumps(TOOLS),
        ),
        [([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], TOOLS)],
    ),
    "Alpaca with NaN as its input, as pandas writes it": (
        "d.jsonl",
        b'{"instruction": "a", "input": NaN, "output": "b"}\n',
        [("a", "b")],
    ),
    "a mark before the first name of an array": (
        "d.json",
        '[{"\ufeffx": "a", "y": "b"}]'.encode(),
        [("a", "b")],
    ),
    "parts of text as OpenAI's assistants have them": (
        "d.jsonl",
        lines(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": {"value": "2+2?", "annotations": []}}],
                    },
                    FOUR,
                ]
            }
        ),
        ASKED,
    ),
    "one part that is no list, and parts as ChatGPT exports them": (
        "d.jsonl",
        lines(
            {
                "messages": [
                    {"role": "user", "content": {"content_type": "text", "parts": ["2+", "2?"]}},
                    {"role": "assistant", "content": {"type": "text", "text": "4"}},
                ]
            }
        ),
        ASKED,
    ),
    "text that begins as a list and is none": (
        "d.jsonl",
        lines({"x": "[INST] a", "y": '[{"role": "b"'}),
        [("[INST] a", '[{"role": "b"')],
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_an_odd_file_is_read(tmp_path, kind):
    name, data, expected = READ[kind]
    (tmp_path / name).write_bytes(data)
    assert [said(example) for example in read(tmp_path / name)[0]] == expected


def test_completions_that_repeat_their_prompt_are_said(tmp_path):
    prompt = "Question: what is the time?"
    pair = {"prompt": prompt, "chosen": f"{prompt} Two.", "rejected": f"{prompt} Late."}
    (tmp_path / "d.jsonl").write_bytes(lines(pair, {**pair, "rejected": "Three."}))
    assert read(tmp_path / "d.jsonl")[1].endswith(
        "; 3 of 4 completions begin with the whole prompt; if that is not to be learned, "
        "take it out of them"
    )
    (tmp_path / "d.jsonl").write_bytes(lines({**pair, "chosen": "One.", "rejected": "Two."}))
    assert "begin" not in read(tmp_path / "d.jsonl")[1]


def test_the_name_of_a_field_that_is_not_read_is_cut_off(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(lines({**PAIR, "k" * 5000: 1}))
    assert read(tmp_path / "d.jsonl")[1].endswith(f"; not read: {'k' * 40}..")


REFUSED = {
    "a comma behind the last field": (
        "d.jsonl",
        b'{"x": "a", "y": "b",}\n',
        "d.jsonl:1: not valid JSON at column 21: Expecting property name enclosed in double "
        "quotes; leave out the comma before it",
    ),
    "commas between lines": (
        "d.jsonl",
        b'{"x": "a", "y": "b"}\n,{"x": "c", "y": "d"}\n',
        "d.jsonl:2: not valid JSON at column 1: Expecting value; leave out the comma between",
    ),
    "a comment": (
        "d.jsonl",
        b"# of mine\n" + JSONL,
        "d.jsonl:1: not valid JSON at column 1: Expecting value; JSON has no comments, remove it",
    ),
    "Python's True": (
        "d.jsonl",
        b'{"x": "a", "y": "b", "ok": True}\n',
        "d.jsonl:1: not valid JSON at column 28: Expecting value; this is Python's notation",
    ),
    "a line that is cut off": (
        "d.jsonl",
        JSONL + b'{"x": "c", "y',
        "d.jsonl:3: not valid JSON at column 12: Unterminated string starting at; the record is "
        "cut off: write the file again, or remove the line",
    ),
    "a tab in a text": (
        "d.jsonl",
        b'{"x": "a\tb", "y": "b"}\n',
        "d.jsonl:1: not valid JSON at column 9: Invalid control character at; write a tab as \\t",
    ),
    "a line break in a text": (
        "d.jsonl",
        b'{"x": "a\nb", "y": "b"}\n',
        "d.jsonl:1: not valid JSON at column 9, in record 1: Invalid control character at; write",
    ),
    "a path of Windows": (
        "d.jsonl",
        b'{"x": "C:\\path", "y": "b"}\n',
        "d.jsonl:1: not valid JSON at column 10: Invalid \\escape; write a backslash as \\\\",
    ),
    "quotes of a word processor": (
        "d.jsonl",
        "{“x”: “a”, “y”: “b”}\n".encode(),
        "d.jsonl:1: not valid JSON at column 2: Expecting property name enclosed in double "
        'quotes; write straight quotes (")',
    ),
    "YAML": (
        "d.yaml",
        b"- x: a\n  y: b\n",
        "d.yaml:1: not valid JSON at column 1: Expecting value; if",
    ),
    "JSON as a table": (
        "d.csv",
        JSONL,
        "d.csv:1: looks like JSON, not like a table; give the file",
    ),
    "JSON as Parquet": (
        "d.parquet",
        JSONL,
        "d.parquet: looks like JSON, not like Parquet; give it",
    ),
    "packed twice": (
        "d.jsonl.gz",
        gzip.compress(gzip.compress(JSONL)),
        "d.jsonl.gz: is compressed twi",
    ),
    "a picture": (
        "d.png",
        b"\x89PNG\r\n\x1a\n" + bytes(30),
        "d.png: holds no text, it begins with the bytes 89 50 4e 47; give JSON lines, JSON, CSV",
    ),
    "arrays of NumPy": ("d.npy", b"\x93NUMPY\x01\0v\0", "d.npy: holds no text, it begins with"),
    "LZ4": ("d.jsonl.lz4", b"\x04\x22\x4d\x18" + bytes(9), "d.jsonl.lz4: holds no text, it begins"),
    "weights": (
        "model.safetensors",
        (80).to_bytes(8, "little") + b'{"__metadata__":{}}',
        "model.safetensors: is a file of weights (safetensors); give records as --data",
    ),
    "a model": ("m.gguf", b"GGUF\3\0\0\0", "m.gguf: is a model in a GGUF file; give it as --model"),
    "conversations that ChatGPT exported": (
        "d.json",
        json.dumps([{"title": "a", "mapping": {"b": {"message": None, "children": []}}}]).encode(),
        "d.json: record 1: format not recognised: the fields are title, mapping; it looks like a "
        "tree of ChatGPT's export; write each path from its root as messages",
    ),
    "answers of the OpenAI API": (
        "d.jsonl",
        lines({"id": "1", "choices": [{"index": 0, "message": FOUR}]}),
        "d.jsonl:1: format not recognised: the fields are id, choices; it looks like an answer of "
        "the OpenAI API; write the prompt and the answer as messages",
    ),
    "requests of the OpenAI API": (
        "d.jsonl",
        lines({"custom_id": "1", "body": {"messages": [USER]}}),
        "d.jsonl:1: format not recognised: the fields are custom_id, body; it looks like requests",
    ),
    "a tool that gave nothing": (
        "d.jsonl",
        lines({"messages": [USER, {"role": "tool", "content": None}, FOUR]}),
        "d.jsonl:1: field 'messages[1].content' must be text, found null; write \"\" where it is",
    ),
    "messages that are null": (
        "d.jsonl",
        lines({"messages": None}),
        "d.jsonl:1: format not recognised: the fields are messages; it looks like a conversation "
        "without turns (messages is null); remove the record",
    ),
    "turns without roles": (
        "d.jsonl",
        lines({"id": "0", "data": ["a", "b", "c", "d"]}),
        "d.jsonl:1: format not recognised: the fields are id, data; it looks like turns without "
        "roles in 'data'; write them as messages",
    ),
    "records by name": (
        "d.json",
        json.dumps({"a": PAIR, "b": PAIR}).encode(),
        "d.json:1: format not recognised: the fields are a, b; it looks like one object that holds",
    ),
    "a record inside a field": (
        "d.jsonl",
        lines({"data": PAIR}, {"data": PAIR}),
        "d.jsonl:1: format not recognised: the fields are data; it looks like a record inside 'dat",
    ),
    "an answer that is true": (
        "d.jsonl",
        lines({"x": "a", "y": True}),
        "d.jsonl:1: field 'y' must be text, found bool; write it as text, such as yes",
    ),
    "a table of numbers without a header": (
        "d.csv",
        b"1+1,2\n2+2,4\n",
        "d.csv:2: format not recognised: the fields are 1+1, 2; it looks like a table without a "
        "header; put a line with the columns' names before it",
    ),
    "NULs at the end": ("d.jsonl", JSONL + bytes(5000), "d.jsonl:3: holds NUL bytes, as files do"),
    "NULs behind a record": ("d.jsonl", JSONL.rstrip(b"\n") + b"\0", "d.jsonl:2: holds NUL bytes"),
    "NULs at the end of a table": ("d.csv", TABLE.encode() + bytes(9), "d.csv:4: holds NUL bytes"),
    "UTF-16 that is cut off": (
        "d.jsonl",
        recoded(JSONL, "utf-16")[:-1],
        "d.jsonl: cannot be read: it begins as UTF-16-LE, and what follows is none; save it as",
    ),
    "text behind a record": (
        "d.jsonl",
        b'{"x": "a", "y": "b"},\n{"x": "c", "y": "d"},\n',
        "d.jsonl:1: not valid JSON at column 21: a record ends, and more text follows",
    ),
    "Python's notation": (
        "d.jsonl",
        b"{'x': 'a', 'y': 'b'}\n",
        "d.jsonl:1: not valid JSON at column 2: Expecting property name enclosed in double quotes; "
        "this is Python's notation, write it with json.dumps",
    ),
    "Python's notation of turns, in a table": (
        "d.csv",
        cells(messages=str([USER, FOUR])),
        "d.csv:2: field 'messages' must be a list, or JSON of one, and is other text, Python's "
        "notation; write it with json.dumps",
    ),
    "Python's notation of completions, in a table": (
        "d.csv",
        cells(prompt="a", chosen=str([FOUR]), rejected=str([FOUR])),
        "d.csv:2: field 'chosen' is a list in Python's notation; write it with json.dumps",
    ),
    "plain text": (
        "d.txt",
        b"x\ty\na\tb\n",
        "d.txt:1: not valid JSON at column 1: Expecting value; write JSON lines, or give a table",
    ),
    "a key twice, deep within": (
        "d.jsonl",
        b'{"x": "a", "y": "b", "meta": {"k": 1, "k": 2}}\n',
        "d.jsonl:1: not valid JSON: key 'k' is given twice; leave one out",
    ),
    "a number of 5,000 digits": (
        "d.jsonl",
        b'{"x": "a", "y": "b", "n": ' + b"9" * 5000 + b"}\n",
        "d.jsonl:1: not valid JSON: a number of thousands of digits; write it as text",
    ),
    "a zip archive": ("d.jsonl", zipped(JSONL), "d.jsonl: is a zip archive or a spreadsheet"),
    "a spreadsheet": ("d.xlsx", zipped(JSONL), "d.xlsx: is a zip archive or a spreadsheet; unpack"),
    "a tar archive": ("d.tar.gz", tar(JSONL), "d.tar.gz: is a tar archive; unpack it and give its"),
    "Feather": ("d.feather", arrow(pyarrow.ipc.new_file), "d.feather: is an Arrow (Feather) file"),
    "a file of datasets": (
        "d.arrow",
        arrow(pyarrow.ipc.new_stream),
        "d.arrow: is an Arrow stream; give the `datasets` folder that it lies in",
    ),
    "a pointer of Git LFS": (
        "d.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "d.parquet: is a pointer of Git LFS, which stands for the file; fetch it with `git lfs",
    ),
    "a web page": ("d.jsonl", b"\n<!DOCTYPE html>\n<html>", "d.jsonl: is a web page; download the"),
    "xz that is broken": ("d.jsonl.xz", lzma.compress(JSONL)[:-20], "d.jsonl.xz: cannot be read: "),
    "bzip2 that is none": ("d.bz2", b"BZ" + JSONL, "d.bz2: cannot be read: Invalid data stream"),
    "a file by columns": (
        "d.json",
        json.dumps({"x": ["a", "b"], "y": ["c", "d"]}).encode(),
        "d.json:1: field 'x' holds 2 values, as a file that is written by columns; write one "
        "record a line",
    ),
    "a file by columns, with numbers of rows": (
        "d.json",
        json.dumps({"x": {"0": "a", "1": "b"}, "y": {"0": "c", "1": "d"}}).encode(),
        "d.json:1: field 'x' holds 2 values, as a file that is written by columns",
    ),
    "two forms": (
        "d.jsonl",
        lines({"x": "a", "y": "b"}, {"messages": [USER, FOUR]}),
        "d.jsonl:2: has the format 'messages', and the file is read as 'x and y'; give records of "
        "each form in a file of their own",
    ),
    "turns that are none": (
        "d.jsonl",
        lines({"messages": [USER, FOUR]}, {"messages": []}),
        "d.jsonl:2: field 'messages' is an empty list; remove the record",
    ),
    "a picture beside a text": (
        "d.jsonl",
        lines(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "image"}],
                    },
                    FOUR,
                ]
            }
        ),
        "d.jsonl:1: field 'messages[0].content[1]' is of type image; only parts of text are read",
    ),
    "a picture as a column": (
        "d.parquet",
        columns({"messages": [USER, FOUR], "images": [{"bytes": b"a", "path": None}]}),
        "d.parquet: record 1: field 'images' holds pictures or sound, which are not read",
    ),
    "a name of a column with a line break": (
        "d.csv",
        b'"a\nb",c\nd,e\n',
        "d.csv:3: format not recognised: the fields are a b, c; name its fields with",
    ),
    "Parquet with text that is not UTF-8": (
        "d.parquet",
        columns({"x": "abcdefgh" * 2, "y": "b"}, compression="none").replace(b"efgh", b"ef\xffh"),
        "d.parquet: not valid Parquet: 'utf-8' codec can't decode",
    ),
    "a column twice in Parquet": (
        "d.parquet",
        None,
        "d.parquet: column 'x' is given twice; rename one",
    ),
    "an encoding of the last century": (
        "d.jsonl",
        '{"x": "é", "y": "b"}\n'.encode("cp1252"),
        "d.jsonl:1: byte 8 is not UTF-8; save the file as UTF-8",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_odd_file_is_refused_in_one_line(tmp_path, kind):
    name, data, line = REFUSED[kind]
    file = tmp_path / name
    if data is None:
        sink = pyarrow.table([["a"], ["b"], ["c"]], names=["x", "x", "y"])
        pyarrow.parquet.write_table(sink, file)
    else:
        file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/{line}") and "\n" not in message
    assert caught.value.exit_code == 2


def test_a_folder_of_the_hub_is_no_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").touch()
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert f"name those to read, such as '{tmp_path}/*/*.parquet'" in str(caught.value)


@pytest.mark.parametrize("typed", ["trian.jsonl", "train.json", "train.jsonll"])
def test_a_name_that_is_mistyped_gets_the_one_that_is_there(tmp_path, monkeypatch, typed):
    (tmp_path / "train.jsonl").write_bytes(JSONL)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^{typed}: no such file; did you mean train.jsonl\?$"):
        read(typed)
    with pytest.raises(UserError, match=r"no such file; did you mean .*/train.jsonl\?$"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(UserError, match="no such file; --data takes a file"):
        read("other.csv")


def test_what_can_be_read_once_only_is_said(tmp_path):
    with pytest.raises(UserError, match="/dev/null: cannot be read twice, as is needed"):
        read("/dev/null")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("https://example.com/d.jsonl", "is an address; download the file and give its path"),
        (
            "https://huggingface.co/datasets/openai/gsm8k/viewer/main/train?row=3",
            "is an address; give the name as NAME:CONFIG:SPLIT, openai/gsm8k:..",
        ),
        (
            "https://huggingface.co/datasets/openai/gsm8k/resolve/main/train.parquet",
            "is an address; download the file and give its path",
        ),
        ("C:\\data\\d.jsonl", r"C:\data\d.jsonl: no such file"),
    ],
)
def test_an_address_and_a_path_of_another_system_are_no_hub_names(data, line):
    with pytest.raises(UserError) as caught:
        read(data)
    assert line in str(caught.value)
