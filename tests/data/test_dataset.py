import gzip
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import zstandard

from twcli.data.dataset import read_examples
from twcli.data.example import Example
from twcli.data.placed import MAX_LINE_BYTES
from twcli.errors import UserError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_reads_records_in_order_with_unicode(tmp_path):
    lines = [
        {"x": "é 😀", "y": "a\nb", "strategy": "s", "id": 3, "answer": [1]},
        {"x": "x", "y": "नमस्ते"},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path = write(tmp_path / "d.jsonl", text.encode())
    assert read_examples(path, strategy_field="strategy") == [
        Example("é 😀", "a\nb", "s"),
        Example("x", "नमस्ते"),
    ]


def test_training_never_sees_labels(tmp_path):
    path = write(tmp_path / "d.jsonl", '{"x": "a", "y": "b", "strategy": 7}')
    assert read_examples(path) == [Example("a", "b", None)]
    with pytest.raises(UserError, match="field 'strategy' must be text or null, found int"):
        read_examples(path, strategy_field="strategy")


def test_a_label_without_a_name_is_none(tmp_path):
    path = write(tmp_path / "d.jsonl", '{"x": "a", "y": "b", "strategy": ""}')
    assert read_examples(path, strategy_field="strategy") == [Example("a", "b", None)]


def test_field_names_can_be_mapped(tmp_path):
    path = write(tmp_path / "d.jsonl", '{"q": "a", "a": "b", "k": "c"}')
    assert read_examples(path, x_field="q", y_field="a", strategy_field="k") == [
        Example("a", "b", "c")
    ]


BROKEN = {
    "not JSON": ('{"x": "a", "y": "b"}\n{"x": ', r"d.jsonl:2: not valid JSON at column \d+"),
    "missing": ('{"x": "a", "y": "b"}\n{"x": "a"}', r"d.jsonl:2: field 'y' is missing; it has: x"),
    "type": ('{"x": "a", "y": 3}', r"d.jsonl:1: field 'y' must be text, found int"),
    "empty y": ('{"x": "a", "y": " "}', r"d.jsonl:1: field 'y' is empty"),
    "list": ('{"x": "a", "y": "b"}\n[1]', r"d.jsonl:2: expected a JSON object .* found list"),
    "not JSON after a blank line": ('\n{"x": "a", "y": "b"}\n\n{', r"d.jsonl:4: not valid JSON"),
    "empty file": ("", r"d.jsonl: holds no records"),
    "surrogate": (
        '{"x": "a", "y": "\\ud800"}',
        r"d.jsonl:1: field 'y' holds half of a surrogate pair",
    ),
    "NUL": ('{"x": "a", "y": "b\\u0000"}', r"d.jsonl:1: field 'y' holds a NUL"),
    "UTF-16 cut off": ('{"x": "a"}'.encode("utf-16")[:-1], r"d.jsonl: cannot be read: .*UTF-16-LE"),
    "deep": ("[" * 100_000, r"d.jsonl:1: (record 1: )?(JSON is nested too deeply|not valid JSON)"),
    "key twice": (
        '{"x": "a", "y": "b", "x": "c"}',
        r"d.jsonl:1: not valid JSON: key 'x' is given twice; leave one out",
    ),
    "huge line": (b"x" * (MAX_LINE_BYTES + 2), r"d.jsonl:1: line is longer than 16 MiB"),
    "huge integer": ('{"x": "a", "y": ' + "9" * 5000 + "}", r"d.jsonl:1: not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_one_line_that_names_file_and_line(tmp_path, case):
    content, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as caught:
        read_examples(write(tmp_path / "d.jsonl", content))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_examples(str(tmp_path / "none.jsonl"))


IDS = [
    [7, 7],
    ["problem-17", "problem-17"],
    [1.0, 2.5],
    ["/r/askreddit/123", "../x"],
    [[1], {"a": 1}],
    [None, True],
]


@pytest.mark.parametrize("ids", IDS)
def test_ids_are_not_read(tmp_path, ids):
    """Several completions of one problem have one id: the data that is wanted."""
    lines = [json.dumps({"x": "a", "y": f"b{n}", "id": i}) for n, i in enumerate(ids)]
    found = read_examples(write(tmp_path / "d.jsonl", "\n".join(lines)))
    assert found == [Example("a", "b0"), Example("a", "b1")]


def test_numbers_that_json_lacks_may_stand_in_fields_that_are_not_read(tmp_path):
    text = '{"x": "a", "y": "b", "score": NaN}\n{"x": "a", "y": "c", "score": 1e999}\n'
    assert [e.y for e in read_examples(write(tmp_path / "d.jsonl", text))] == ["b", "c"]


# `datasets` folders and hub names: the library itself is an extra


class Library(ModuleType):
    """Stands for `datasets`: one table on disk and on the hub, one folder of splits,
    one that cannot be loaded.
    """

    table = ({"x": "a", "y": "b", "strategy": None}, {"x": "c", "y": "d", "strategy": "s"})

    def load_from_disk(self, path):
        if path.endswith("broken"):
            raise FileNotFoundError("no dataset_info.json\nthere")
        return {"train": self.table, "test": self.table} if path.endswith("splits") else self.table

    def load_dataset(self, name, config, split):
        if config == "wrong":
            raise ValueError("BuilderConfig 'wrong' not found.\nAvailable: main")
        self.asked = (name, config, split)
        return self.table

    def disable_progress_bars(self):
        pass


@pytest.fixture
def library(monkeypatch):
    library = Library("datasets")
    monkeypatch.setitem(sys.modules, "datasets", library)
    config = ModuleType("datasets.config")
    config.HF_HUB_OFFLINE = False
    monkeypatch.setitem(sys.modules, "datasets.config", config)
    library.config = config
    monkeypatch.setattr("twcli.storage.hub.has", lambda *_: True)
    return library


def test_a_datasets_folder_and_a_hub_name_are_read(library, tmp_path):
    expected = [Example("a", "b"), Example("c", "d", "s")]
    (tmp_path / "state.json").touch()
    assert read_examples(str(tmp_path), strategy_field="strategy") == expected
    for name, asked in {
        "user/name": ("user/name", None, "train"),
        "name:main": ("name", "main", "train"),
        "user/name:main:test": ("user/name", "main", "test"),
        "user/name::test": ("user/name", None, "test"),
    }.items():
        assert read_examples(name, strategy_field="strategy") == expected
        assert library.asked == asked


def test_a_hub_name_with_a_wrong_config(library):
    with pytest.raises(UserError, match=r"user/name:wrong: .*BuilderConfig 'wrong' not found\."):
        read_examples("user/name:wrong")


def test_a_datasets_folder_that_is_not_one_is_refused(library, tmp_path):
    for name in ("broken", "splits"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_dict.json").touch()
    with pytest.raises(
        UserError, match=r"broken: `datasets` cannot load it: no dataset_info\.json$"
    ):
        read_examples(str(tmp_path / "broken"))
    with pytest.raises(
        UserError, match="holds the splits train, test; give the folder of one of them"
    ):
        read_examples(str(tmp_path / "splits"))


def test_a_folder_of_files_is_no_data(tmp_path):
    with pytest.raises(UserError, match="holds no data that `datasets` saved"):
        read_examples(str(tmp_path))
    write(tmp_path / "train.jsonl", "")
    with pytest.raises(
        UserError, match=r"a folder with files; name those to read, such as '.*\*\.jsonl'"
    ):
        read_examples(str(tmp_path))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr("twcli.storage.hub.has", lambda *_: True)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'twcli-cvae\[datasets\]'"):
        read_examples("user/name")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    path = write(tmp_path / "d.jsonl", '{"x": "a", "y": "b"}')
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"d\.jsonl: cannot be read: Permission denied"),
    ):
        patch.setattr(
            Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        read_examples(path)


def test_a_label_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="field 'strategy' holds a NUL"):
        read_examples(
            write(tmp_path / "d.jsonl", '{"x": "a", "y": "b", "strategy": "s\\u0000"}'),
            strategy_field="strategy",
        )


PACKERS = {
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.compress(data[:40]) + zstandard.compress(data[40:]),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files(tmp_path, suffix):
    data = "".join(
        json.dumps({"x": f"w{i}", "y": "w1 \u00e9"}) + "\n" for i in range(1000)
    ).encode()
    file = tmp_path / f"d.jsonl{suffix}"
    file.write_bytes(PACKERS[suffix](data))
    assert [e.x for e in read_examples(str(file))] == [f"w{i}" for i in range(1000)]
    file.write_bytes(PACKERS[suffix](data + b"{\n"))
    with pytest.raises(UserError, match=rf"d\.jsonl{suffix}:1001: not valid JSON"):
        read_examples(str(file))
    file.write_bytes(data)  # unpacked on its way
    assert len(read_examples(str(file))) == 1000
    file.write_bytes(b"\xff\x00" + data)
    with pytest.raises(UserError, match=r"cannot be read|not UTF-8"):
        read_examples(str(file))
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="pointer of Git LFS"):
        read_examples(str(file))


def test_a_packed_file_that_was_cut_off(tmp_path):
    file = tmp_path / "d.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"x": "w0", "y": "w1"}\n' * 1000)[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        read_examples(str(file))
