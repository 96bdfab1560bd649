"""names.jsonl: what is written is read back, a person may edit it, and bad input gives its line."""

import json
import tracemalloc

import numpy as np
import pytest

from twcli.data import names
from twcli.data.names import read_names, write_names
from twcli.errors import UserError

HASHES = np.arange(4 * 16, dtype=np.uint8).reshape(4, 16)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "names.jsonl"
    write_names(path, HASHES, np.array([1, 0, -1, 2]), np.array([0.98766, 1.0, np.nan, 0.25]))
    return path


def edit(path, line, /, **changes):
    """Changes fields of a line; a value of `...` takes the field out."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[line]) | changes
    record = {key: value for key, value in record.items() if value is not ...}
    lines[line] = json.dumps(record, ensure_ascii=False)
    path.write_text("\n".join(lines) + "\n")


def refused(path, latents=3):
    with pytest.raises(UserError) as caught:
        read_names(path, HASHES, latents)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message.removeprefix(str(path))


def test_the_file_is_as_documented(path):
    first, _, third, _ = map(json.loads, path.read_text().splitlines())
    digits = "000102030405060708090a0b0c0d0e0f"
    assert first == {"row": 0, "hash": digits, "latent": 1, "probability": 0.9877}
    assert list(first) == ["row", "hash", "latent", "probability"]
    assert (third["latent"], third["probability"]) == (None, None)
    assert path.read_bytes().endswith(b"}\n") and b"\r" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["names.jsonl"]


@pytest.mark.parametrize("latents", [None, 3, 7])
def test_round_trip(path, latents):
    found = read_names(path, HASHES, latents)
    assert found.latent_N.tolist() == [1, 0, -1, 2] and found.latent_N.dtype == np.int64
    assert found.probability_N == pytest.approx([0.9877, 1.0, 0.0, 0.25])
    assert found.probability_N.dtype == np.float32
    assert found.latents == (latents or 3)


def test_round_trip_of_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "ROWS_A_WRITE", 7)
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (100, 16), np.uint8)
    latent_N = generator.integers(-1, 5, 100)
    probability_N = generator.random(100, np.float32)
    write_names(tmp_path / "n", hashes, latent_N, probability_N)
    found = read_names(tmp_path / "n", hashes, 5)
    assert (found.latent_N == latent_N).all()
    known = latent_N >= 0
    assert np.abs(found.probability_N - probability_N)[known].max() <= 0.5001e-4
    write_names(tmp_path / "again", hashes, found.latent_N, found.probability_N)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "n").read_bytes()


def test_an_edited_file(path):
    edit(path, 0, latent=2)  # keeps the probability
    edit(path, 1, latent=None, note="two strategies in one: ask Zoë", probability=None)
    edit(path, 2, latent=0, probability=1)
    edit(path, 3, hash=HASHES[3].tobytes().hex().upper())
    path.write_text(path.read_text().rstrip("\n"))  # editors may leave the last line open
    found = read_names(path, HASHES, None)
    assert found.latent_N.tolist() == [2, -1, 0, 2]
    assert found.probability_N == pytest.approx([0.9877, 0.0, 1.0, 0.25])


def test_all_to_be_found_needs_the_number_of_latents(path):
    for row in range(4):
        edit(path, row, latent=None)
    assert read_names(path, HASHES, 3).latent_N.tolist() == [-1] * 4
    assert refused(path, None) == ":1: field 'latent' is null on every line; give --latents"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"row": 2}, "field 'row' is 2, expected 1; put the lines in the order of the data"),
        ({"row": True}, "field 'row' must be a whole number, found true; write 1"),
        ({"row": 1.0}, "field 'row' must be a whole number, found 1.0; write 1"),
        ({"row": "1"}, "field 'row' must be a whole number, found \"1\"; write 1"),
        ({"row": ...}, "field 'row' is missing; each line needs row, hash, latent, probability"),
        ({"hash": ...}, "field 'hash' is missing; "),
        ({"latent": ...}, "field 'latent' is missing; "),
        ({"probability": ...}, "field 'probability' is missing; "),
        ({"hash": "0" * 31}, "field 'hash' must be 32 hex digits, found "),
        ({"hash": "g" * 32}, "field 'hash' must be 32 hex digits, found "),
        ({"hash": " 0" * 16}, "field 'hash' must be 32 hex digits, found "),
        ({"hash": None}, "field 'hash' must be 32 hex digits, found null; restore it, or run "),
        (
            {"hash": "0" * 32},
            "field 'hash' differs from the data's: the file belongs to other data, or the data "
            "changed; run `twcli discover` again",
        ),
        (
            {"latent": 7},
            "field 'latent' is an unknown latent 7; --latents is 3; write 0 to 2, or null to "
            "have it found",
        ),
        ({"latent": 10**30}, "field 'latent' is an unknown latent 1000000000000"),
        ({"latent": -1}, "field 'latent' is negative: -1; write 0 to 2"),
        ({"latent": 1.0}, "field 'latent' must be a whole number or null, found 1.0; write 0"),
        ({"latent": False}, "field 'latent' must be a whole number or null, found false; "),
        ({"latent": "z1"}, "field 'latent' must be a whole number or null, found \"z1\"; "),
        ({"probability": 1.01}, "field 'probability' is 1.01, outside 0 to 1; write a number"),
        ({"probability": -0.1}, "field 'probability' is -0.1, outside 0 to 1; "),
        ({"probability": "0.5"}, "field 'probability' must be a number, found \"0.5\"; "),
        ({"probability": True}, "field 'probability' must be a number, found true; "),
        ({"probability": None}, "field 'probability' is null beside a latent; write a number "),
        ({"probability": float("nan")}, "not valid JSON: NaN is not JSON; write null or a "),
        ({"probability": float("inf")}, "not valid JSON: Infinity is not JSON; write null "),
        ({"probability": "x" * 500}, "field 'probability' must be a number, found \"xxx"),
    ],
)
def test_a_wrong_field(path, changes, expected):
    edit(path, 1, **changes)
    assert refused(path).startswith(":2: " + expected)


def test_a_wrong_probability_beside_no_latent_is_reported_too(path):
    edit(path, 2, probability=2)
    assert refused(path).startswith(":3: field 'probability' is 2, outside 0 to 1")


def test_without_a_number_of_latents_there_is_still_a_largest(path):
    edit(path, 3, latent=1024)
    assert refused(path, None).startswith(
        ":4: field 'latent' is an unknown latent 1024; at most 1024 latents; write 0 to 1023"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"\0", "not valid JSON at column 1: "),
        (b"{", "not valid JSON at column 1: "),
        (b"[]", "expected an object with row, hash, latent, probability, found list; "),
        (b"null", "expected an object with row, hash, latent, probability, found NoneType; "),
        (b'{"row": 1, "row": 1}', "not valid JSON: key 'row' is given twice; leave one out"),
        (b'{"row": 1e999}', "not valid JSON: 1e999 is too large for a number"),
        (b'{"row": ' + b"1" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
        (b'{"row": "\xff"}', "byte 10 is not UTF-8; save the file as UTF-8"),
        (b"[" * 100_000, "JSON is nested too deeply; a line is one flat object"),
        (b'{"note": "' + b"x" * 2**20 + b'"}', "line is longer than 1 MiB; write one row a line"),
    ],
)
def test_a_line_that_is_no_record(path, line, expected):
    lines = path.read_bytes().splitlines()
    lines[1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert refused(path).startswith(":2: " + expected)


def test_a_file_that_another_system_saved(path):
    text = path.read_text()
    for data in (
        b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        text.encode("utf-16"),
        ("\n" + text.replace("\n", "\n\n")).encode(),
        text.rstrip("\n").encode(),
    ):
        path.write_bytes(data)
        assert read_names(path, HASHES, 3).latent_N.tolist() == [1, 0, -1, 2]


def test_too_few_and_too_many_lines(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    assert refused(path) == (
        ":3: field 'row' ends after 3 of the 4 rows of the data; add the missing lines, or run "
        "`twcli discover` again"
    )
    path.write_text("")
    assert refused(path).startswith(":1: field 'row' ends after 0 of the 4 rows of the data; ")
    path.write_text("".join([*lines, lines[3].replace('"row": 3', '"row": 4')]))
    assert refused(path) == (
        ":5: field 'row' is one too many, the data has 4 rows; remove the line, or where the file "
        "belongs to other data run `twcli discover` again"
    )


def test_a_line_left_out_or_twice_is_reported_where_it_is(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2] + lines[3])
    assert refused(path).startswith(":2: field 'row' is 2, expected 1; ")
    path.write_text(lines[0] + lines[0] + lines[1])
    assert refused(path).startswith(":2: field 'row' is 0, expected 1; ")


def test_files_that_cannot_be_read(path, tmp_path):
    assert refused(tmp_path / "none.jsonl") == (
        ": no such file; --names takes the names.jsonl that `twcli discover` wrote"
    )
    assert "cannot be read: Is a directory" in refused(tmp_path)
    for suffix in (".gz", ".zst"):
        assert "compressed names are not read; decompress the file" in refused(f"{path}{suffix}")


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan, np.inf])
def test_a_probability_that_is_none_is_not_written(path, bad):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="probabilities"):
        write_names(path, HASHES, np.zeros(4, int), np.array([1, 1, 1, bad]))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["names.jsonl"]


def test_shapes_that_differ_are_not_written(path):
    with pytest.raises(ValueError, match="shapes"):
        write_names(path, HASHES, np.zeros(3, int), np.zeros(4))
    with pytest.raises(ValueError, match="shapes"):
        write_names(path, HASHES[:, :8], np.zeros(4, int), np.zeros(4))


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(names.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_names(path, HASHES, np.zeros(4, int), np.zeros(4))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["names.jsonl"]


@pytest.mark.slow
def test_memory_holds_arrays_only(tmp_path):
    rows = 50_000
    hashes = np.zeros((rows, 16), np.uint8)
    tracemalloc.start()
    write_names(tmp_path / "n", hashes, np.zeros(rows, np.int64), np.ones(rows))
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    read_names(tmp_path / "n", hashes, None)
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written < 12 * 2**20  # one piece of the file, whatever the rows
    assert read < 12 * rows + 2 * 2**20


def test_rows_keep_the_numbers_of_the_data(tmp_path):
    """Where rows were left out, the others keep their numbers."""
    path, numbers = tmp_path / "names.jsonl", np.array([0, 2, 3, 9])
    write_names(path, HASHES, np.array([1, 0, -1, 2]), np.ones(4), numbers)
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [0, 2, 3, 9]
    assert read_names(path, HASHES, 3, numbers).latent_N.tolist() == [1, 0, -1, 2]
    with pytest.raises(UserError, match=r":2: field 'row' is 2, expected 1; "):
        read_names(path, HASHES, 3)
