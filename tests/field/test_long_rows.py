"""The same rows are left out by every command, and the others keep the numbers of the data."""

import json

import pytest

from tests.conftest import make_model, make_tokenizer
from tests.test_cli import ok, refused


@pytest.fixture
def folder(tmp_path):
    make_model(positions=32).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    lines = [{"x": f"w{i % 5}", "y": f"w{i % 7} w{i % 3}", "strategy": "s"} for i in range(24)]
    lines[0] = lines[9] = {"x": "w1", "y": "w1 " * 40}
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.mark.slow
def test_from_precompute_to_eval(folder):
    data = ("--data", folder / "d.jsonl", "--device", "cpu")
    flags = (*data, "--model", folder / "model")
    refused("precompute", *flags, "--out", folder / "b.h5", says="so are 2 of 24 rows")
    skip = ("--too-long", "skip")
    said = ok("precompute", *flags, *skip, "--out", folder / "b.h5").stderr
    assert "too long: of 24 rows 2 are left out; the limit is 32 tokens" in said
    found = json.loads(ok("inspect", folder / "b.h5", "--json").stdout)
    assert found["rows"] == 22 and found["fingerprint"]["too_long"] == {"skip": 2}
    ok("inspect", folder / "b.h5", "--verify", "--model", folder / "model", *data[:2])
    ok("discover", *flags, *skip, "--latents", 2, "--out", folder / "names.jsonl")
    names = (folder / "names.jsonl").read_text().splitlines()
    rows = [json.loads(line)["row"] for line in names]
    assert rows == [row for row in range(24) if row not in (0, 9)]
    train = ("--baseline", folder / "b.h5", "--names", folder / "names.jsonl", "--steps", 2)
    ok("train", *flags, *skip, *train, "--out", folder / "run")
    shown = ok("eval", "--run", folder / "run", *data, "--bootstrap", 10, "--json")
    assert json.loads(shown.stdout)["likelihood"]["gain"] is not None


@pytest.mark.slow
def test_several_tokens_of_a_latent_are_counted_by_every_command(folder):
    """Rows of 31 tokens fit with one token per latent, of 32; with four they do not."""
    lines = [json.loads(line) for line in (folder / "d.jsonl").read_text().splitlines()]
    lines[4]["x"] = "w1 " * 20
    (folder / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ("--data", folder / "d.jsonl", "--device", "cpu")
    flags = (*data, "--model", folder / "model", "--too-long", "truncate-left")
    four = ("--latent-tokens", 4)
    out = ("--out", folder / "b.h5")
    said = ok("precompute", *flags, *out).stderr
    assert "of 24 rows 2 are left out" in said and "1 lose" not in said
    train = ("train", *flags, *four, "--baseline", folder / "b.h5", "--latents", 2, "--steps", 2)
    train = (*train, "--warm-start", "none", "--out", folder / "run")
    says = "`twcli precompute --overwrite`, with --too-long, --empty and --latent-tokens as here"
    refused(*train, "--quiet", says=["made with another latent_tokens", says])
    said = ok("precompute", *flags, *four, *out, "--overwrite").stderr
    assert "1 lose the beginning of x, 2 are left out" in said
    fingerprint = json.loads(ok("inspect", folder / "b.h5", "--json").stdout)["fingerprint"]
    assert fingerprint["latent_tokens"] == 4
    assert fingerprint["too_long"] == {"skip": 2, "truncate-left": 1}
    ok("inspect", folder / "b.h5", "--verify", "--model", folder / "model", *data[:2])
    names = ("--out", folder / "names.jsonl", "--json")
    named = json.loads(ok("discover", *flags, *four, "--latents", 2, *names).stdout)
    assert "--latent-tokens 4" in named["command"]
    ok(*train)
    shown = ok("eval", "--run", folder / "run", *data, "--bootstrap", 10, "--json")
    assert json.loads(shown.stdout)["likelihood"]["gain"] is not None
