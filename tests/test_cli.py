"""The commands in-process on a tiny model: the pipeline, what a user can get
wrong, and how the help reads.
"""

import dataclasses
import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import LAUNCH, make_model, make_records, make_tokenizer, write_jsonl
from tests.pages.reading import check
from twcli import __version__
from twcli.cli.main import main
from twcli.commands import sample as sampling
from twcli.config.options import flag_of
from twcli.config.train import TrainConfig
from twcli.data.encoder import ExampleEncoder
from twcli.discovery.number import ABOVE, BELOW
from twcli.errors import UserError
from twcli.models.adapters import add_lora
from twcli.models.card import model_card
from twcli.storage.run_folder import RunFolder
from twcli.training import warm_start
from twcli.training.diagnostics import SUMMARY

ROOT = Path(__file__).parent.parent
COMMANDS = ("precompute", "discover", "train", "eval", "sample", "export", "inspect", "doctor")
PHASE = re.compile(r"\d/\d |then: ")
RECORDS = re.compile(r": .*\d records?\b")  # what is said of the data
JUDGE = "tests.conftest:judge"


def twcli(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def ok(*arguments):
    result = twcli(*arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def refused(*arguments, says):
    """Exit code 2, nothing on stdout, and one line of an error on stderr, which holds `says` and
    comes after what was said of the data.
    """
    result = twcli(*arguments)
    assert result.exit_code == 2, (result.stderr, result.exception)
    assert result.stdout == ""
    *before, error = result.stderr.splitlines()
    assert all(PHASE.match(line) or RECORDS.search(line) for line in before), before
    for part in [says] if isinstance(says, str) else says:
        assert part in error, error


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, model, cache and a short run, made by the commands; tests must not change them."""
    folder = tmp_path_factory.mktemp("made")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "data.jsonl", make_records(20, 3))
    ok(
        "precompute",
        "--model",
        folder / "model",
        "--data",
        folder / "data.jsonl",
        "--out",
        folder / "b.h5",
        "--device",
        "cpu",
    )
    with pytest.MonkeyPatch.context() as patch:  # few records, of which a tenth is held out here
        patch.setattr("twcli.training.held_out.LEAST_RECORDS", 3)
        ok("train", *train_flags(folder), "--out", folder / "run")
    shutil.copy(folder / "run" / "verdict.json", folder)  # eval replaces it
    return folder


def train_flags(made):
    return (
        "--model",
        made / "model",
        "--data",
        made / "data.jsonl",
        "--baseline",
        made / "b.h5",
        "--latents",
        3,
        "--steps",
        4,
        "--batch-tokens",
        200,
        "--device",
        "cpu",
    )


# The pipeline


@pytest.mark.slow
def test_several_seeds_share_the_naming_and_are_evaluated_together(made, tmp_path, monkeypatch):
    named, inner = [], warm_start.name_rows
    monkeypatch.setattr(warm_start, "name_rows", lambda *a, **k: named.append(1) or inner(*a, **k))
    runs = tmp_path / "runs"
    said = ok("train", *train_flags(made), "--seeds", "4,7", "--out", runs).stderr
    assert "seed 4:" in said and "seed 7:" in said and len(named) == 1
    again = ok("train", *train_flags(made), "--seeds", "4,7", "--out", runs).stderr
    assert again.count("already trained") == 2 and len(named) == 1
    inspected = ok("inspect", runs, "--verify").stdout
    assert "seed-4: " in inspected and "every checksum matches" in inspected
    data = made / "data.jsonl"
    judged = ("eval", "--run", runs, "--data", data, "--bootstrap", 10)
    figures = json.loads(ok(*judged, "--json").stdout)
    assert list(figures["runs"]) == ["seed-4", "seed-7"]
    scores = {name: result["score"] for name, result in figures["runs"].items()}
    assert figures["score"] == scores and scores[figures["best"]] == max(scores.values())
    assert (runs / "seed-7" / "report.html").is_file()
    page = check((runs / "report.html").read_text())
    assert [a["href"] for a in page.all("a") if a["href"].endswith("html")] == [
        "seed-4/report.html",
        "seed-7/report.html",
    ]
    table = ok(*judged).stdout
    assert "best by expected alignment: seed-" in table


def assert_documented(figures: dict) -> None:
    """Every key of `eval --json`, and of its sections, is on the page of files."""
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    section = page.split("## eval --json")[1].split("\n## ")[0]
    documented = set(re.findall(r"`([a-z_]+)`", section))
    keys = set(figures)
    for value in figures.values():
        found = value[0] if isinstance(value, list) else value
        keys |= set(found) if isinstance(found, dict) else set()
    missing = {key for key in keys if not key.endswith("_ci")} - documented
    assert len(keys) > 60 and not missing, missing


@pytest.mark.slow
def test_eval_compares_samples_of_the_frozen_model_and_the_run(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    call = ["eval", "--run", tmp_path / "run", "--data", made / "data.jsonl", "--judge", JUDGE]
    call += ["--bootstrap", 20, "--samples", 3]
    plain = json.loads(ok(*call[:-2], "--json").stdout)
    assert plain.pop("sampling") is None
    figures = json.loads(ok(*call, "--json").stdout)
    assert_documented(figures)
    found = figures.pop("sampling")
    figures["judge"], plain["judge"] = None, None  # it was asked more often
    assert figures == plain  # the others keep their meaning
    assert found["k"] == [1, 2, 3] and found["prompts"] == figures["prompts"]
    assert set(found["arms"]) == {"frozen", "even", "proportional", "router"}
    for arm in found["arms"].values():
        for key in ("pass_at_k", "strategies_at_k", "distinct_at_k"):
            for value, (low, high) in zip(arm[key], arm[f"{key}_ci"], strict=True):
                assert 0 <= low <= value + 1e-9 and value - 1e-9 <= high
        assert sorted(arm["pass_at_k"]) == arm["pass_at_k"]
        assert 1 <= arm["diversity"]["vendi"] <= 3 and 0 <= arm["diversity"]["self_bleu"] <= 100
        assert arm["diversity"]["reference_bleu_data"] is not None
    saved = found["samples_saved"]["even"]
    assert saved["ratio"] == pytest.approx(saved["frozen_samples"] / saved["samples"])
    read = found["transmission"]  # 3 samples over 3 latents: one of each a prompt
    assert sum(map(sum, read["confusion"])) + read["unread"] == 3 * found["prompts"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Samples saved" in page and "Is z read back?" in page
    assert check(page).text.count("run, router drawn") >= 4  # in the legends and the tables
    again = ok(*call)  # from what was stored, as a table
    assert "drawn before" in again.stderr
    assert "times fewer" in again.stdout and "z read back" in again.stdout
    assert max(map(len, again.stdout.splitlines())) <= 80
    missing = ok(*call, "--json", "--model", made / "model").stdout
    assert json.loads(missing)["sampling"]["arms"] == found["arms"]


@pytest.mark.slow
def test_eval_prints_one_json_object_and_writes_the_report(made):
    result = ok(
        "eval",
        "--run",
        made / "run",
        "--data",
        made / "data.jsonl",
        "--judge",
        JUDGE,
        "--bootstrap",
        20,
        "--json",
    )
    figures = json.loads(result.stdout)
    assert set(figures["posterior"]) == {
        f"{key}{suffix}"
        for key in ("usage", "active", "mutual_information", "kl", "entropy")
        for suffix in ("", "_ci")
    } | {"collapsed", "unused"}
    assert {
        "posterior_one_to_one",
        "generation_one_to_one",
        "nmi",
        "ari",
        "mapping",
        "coverage_mean",
        "full_coverage_rate",
    } <= set(figures["alignment"])
    assert set(figures["likelihood"]) == {
        f"{key}{suffix}" for key in ("frozen_nll", "marginal_nll", "gain") for suffix in ("", "_ci")
    }
    assert figures["strategy_accuracy"] == figures["alignment"]["generation_one_to_one"]
    assert 0 <= figures["answer_accuracy"] <= 1
    assert figures["score_ci"][0] <= figures["score"] <= figures["score_ci"][1]
    diagnostics = figures["diagnostics"]
    assert {key for key in diagnostics if not key.endswith("_ci")} == set(SUMMARY)
    assert all(
        diagnostics[key] is not None and len(diagnostics[f"{key}_ci"]) == 2 for key in SUMMARY
    )
    page = check((made / "run" / "report.html").read_text())
    assert "mutual_information" in page.text and "Training took" in page.text
    for section in ("latents", "samples", "strategies", "map", "router", "training", "weights"):
        assert {"href": f"#{section}"} in page.all("a"), section


@pytest.mark.slow
def test_train_ends_with_a_page(made, tmp_path):
    """With a verdict, the naming's latents and their b_t, before anything is evaluated."""
    run = tmp_path / "run"
    said = ok("train", *train_flags(made), "--out", run).stderr
    assert f"{run}/report.html" in said
    page = check((run / "report.html").read_text())
    assert f"twcli eval --run {run} --data TEST.jsonl" in page.text
    offered = f"twcli export --run {run} --name 0=NAME" in page.text
    assert offered != ("Failed" in said)  # where no latent means anything, none is to be named
    sections = ["#latents", "#map", "#training", "#weights", "#settings"]
    assert [a["href"] for a in page.all("a")][1:] == sections
    assert RunFolder(run).read_duration(step=4) > 0
    assert RunFolder(run).read_duration(step=3) is None


@pytest.mark.slow
def test_eval_prints_a_table_within_80_columns(made):
    command = ("eval", "--run", made / "run", "--data", made / "data.jsonl", "--bootstrap", 20)
    result = ok(*command)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.startswith(("Works", "Failed", "Not decided"))
    assert len(result.stdout.splitlines()) <= 30 and "report.html" in result.stdout
    everything = ok(*command, "--all")
    assert max(map(len, everything.stdout.splitlines())) <= 80
    assert "no --judge was given" in " ".join(everything.stdout.split())


@pytest.mark.slow
def test_eval_without_labels_says_so(made, tmp_path):
    records = [{"x": r["x"], "y": r["y"]} for r in make_records(20, 3)]
    result = ok(
        "eval",
        "--run",
        made / "run",
        "--data",
        write_jsonl(tmp_path / "d.jsonl", records),
        "--bootstrap",
        20,
    )
    assert "no record has the field 'strategy'" in " ".join(result.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("posterior", ["shared", "exact"])
def test_a_run_without_a_cache_and_with_two_tokens_a_latent(made, tmp_path, posterior):
    flags = [flag for flag in train_flags(made) if flag not in ("--baseline", made / "b.h5")]
    ok(
        "train",
        *flags,
        "--out",
        tmp_path / "run",
        "--baseline-policy",
        "dynamic",
        "--latent-tokens",
        2,
        "--history-dropout",
        0.2,
        "--posterior",
        posterior,
    )
    figures = json.loads(
        ok(
            "eval",
            "--run",
            tmp_path / "run",
            "--data",
            made / "data.jsonl",
            "--judge",
            JUDGE,
            "--bootstrap",
            20,
            "--json",
        ).stdout
    )
    assert (
        0 < figures["diagnostics"]["informative"] <= 1 and figures["likelihood"]["gain"] is not None
    )
    drawn = ok(
        "sample",
        "--run",
        tmp_path / "run",
        "--x",
        "w0 w1",
        "--max-new-tokens",
        5,
        "--latent",
        "router",
        "-n",
        3,
    ).stdout
    assert all(json.loads(line)["latent"] in (0, 1, 2) for line in drawn.splitlines())
    # Without the frozen model the run's own b_t is left.
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made / "model"), str(tmp_path / "moved")))
    again = json.loads(
        ok(
            "eval",
            "--run",
            tmp_path / "run",
            "--data",
            made / "data.jsonl",
            "--bootstrap",
            20,
            "--json",
        ).stdout
    )
    assert again["likelihood"]["gain"] is None and again["diagnostics"][
        "informative"
    ] == pytest.approx(figures["diagnostics"]["informative"])


@pytest.mark.slow
def test_without_the_frozen_model_the_figures_of_b_t_are_null_and_say_why(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(made / "model"), str(tmp_path / "moved")))
    flags = ("eval", "--run", tmp_path / "run", "--data", made / "data.jsonl", "--bootstrap", 20)
    found = json.loads(ok(*flags, "--json").stdout)["diagnostics"]
    assert found["informative"] is found["amplification"] is None and found["z_sensitivity"] > 0
    everything = " ".join(ok(*flags, "--all").stdout.split())
    _, _, rest = everything.partition("Not measured, as original model not found; give --model: ")
    named, _, _ = rest.partition(".")
    assert {"gain", "informative", "amplification"} <= set(named.split(", "))


def test_sample_from_the_frozen_model_is_data_for_the_pipeline(made, tmp_path):
    ok(
        "sample",
        "--model",
        made / "model",
        "--data",
        made / "data.jsonl",
        "-n",
        2,
        "--max-new-tokens",
        8,
        "--out",
        tmp_path / "g.jsonl",
    )
    lines = [json.loads(line) for line in (tmp_path / "g.jsonl").read_text().splitlines()]
    assert {line["x"] for line in lines} <= {r["x"] for r in make_records(20, 3)}
    assert 20 < len(lines) <= 40 and set(lines[0]) == {"x", "y"}
    assert (
        "completions were cut off at the token limit"
        in ok(
            "sample", "--model", made / "model", "--x", "w0", "-n", 30, "--max-new-tokens", 1
        ).stderr
    )
    ok(
        "precompute",
        "--model",
        made / "model",
        "--data",
        tmp_path / "g.jsonl",
        "--out",
        tmp_path / "g.h5",
    )


@pytest.mark.slow
def test_sample_from_a_run(made):
    def latents(*flags):
        lines = ok(
            "sample", "--run", made / "run", "--x", "w0 w1", "--max-new-tokens", 5, *flags
        ).stdout.splitlines()
        return [json.loads(line)["latent"] for line in lines]

    assert set(latents("--latent", "all", "-n", 4)) <= {0, 1, 2}
    assert set(latents("--latent", 2, "-n", 3)) == {2}
    assert 1 <= len(latents("--latent", "router", "-n", 5)) <= 5
    assert latents("--latent", "all", "--seed", 3) == latents("--latent", "all", "--seed", 3)


@pytest.mark.slow
def test_draws_that_were_interrupted_resume_and_give_the_same_file(made, tmp_path, monkeypatch):
    real, calls, flags = (
        sampling.generate,
        [],
        (
            "sample",
            "--run",
            made / "run",
            "--data",
            made / "data.jsonl",
            "-n",
            3,
            "--max-new-tokens",
            4,
        ),
    )
    monkeypatch.setattr(sampling, "BLOCK", 12)
    shown = ok(*flags).stdout
    ok(*flags, "--out", tmp_path / "whole.jsonl")
    assert shown == (tmp_path / "whole.jsonl").read_text() and len(shown.splitlines()) > 30

    def dies(*arguments, **settings):
        calls.append(len(arguments[2]))
        if len(calls) in (3, 4):
            raise (
                KeyboardInterrupt
                if len(calls) == 3
                else OSError(errno.ENOSPC, "No space left on device")
            )
        return real(*arguments, **settings)

    monkeypatch.setattr(sampling, "generate", dies)
    result = twcli(*flags, "--out", tmp_path / "cut.jsonl")
    assert (
        result.exit_code == 130
        and "finished blocks of 4 prompts are kept; run the same command again" in result.stderr
    )
    assert not (tmp_path / "cut.jsonl").exists()
    assert twcli(*flags, "--out", tmp_path / "cut.jsonl").exit_code == 1
    said = ok(*flags, "--out", tmp_path / "cut.jsonl").stderr
    # five blocks, and the two that died
    assert "resuming: 8 of 20 prompts are done" in said and len(calls) == 3 + 1 + 3
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == [
        "cut.jsonl",
        "whole.jsonl",
    ]


@pytest.mark.slow
def test_a_call_that_was_killed_while_it_tidied_up_is_complete(made, tmp_path, monkeypatch):
    flags = (
        "sample",
        "--run",
        made / "run",
        "--data",
        made / "data.jsonl",
        "-n",
        3,
        "--max-new-tokens",
        4,
        "--out",
        tmp_path / "g.jsonl",
    )
    monkeypatch.setattr(sampling, "BLOCK", 12)

    def killed(parts):
        next(parts.folder.glob("*.jsonl")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sampling.Shards, "remove", killed)
        assert twcli(*flags).exit_code == 130
    drawn = (tmp_path / "g.jsonl").read_bytes()
    monkeypatch.setattr(sampling, "generate", lambda *_, **__: pytest.fail("drew again"))
    assert "already complete" in ok(*flags).stderr
    assert (tmp_path / "g.jsonl").read_bytes() == drawn and not (
        tmp_path / "g.jsonl.parts"
    ).exists()
    assert twcli(*flags).exit_code == 2  # as any file that is there


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [("--seed", 1), ("-n", 2), ("--latent", 0), ("--temperature", 0.5)]
)
def test_draws_of_another_call_are_not_gone_on_with(made, tmp_path, monkeypatch, change):
    flags = [
        "sample",
        "--run",
        made / "run",
        "--data",
        made / "data.jsonl",
        "-n",
        3,
        "--max-new-tokens",
        4,
        "--out",
        tmp_path / "g.jsonl",
    ]
    monkeypatch.setattr(sampling, "BLOCK", 12)
    with monkeypatch.context() as patch:
        real, blocks = sampling.generate, iter(range(9))
        patch.setattr(
            sampling, "generate", lambda *a, **s: real(*a, **s) if next(blocks) < 2 else dies()
        )
        assert twcli(*flags).exit_code == 130
    said = ok(*flags, *change).stderr
    assert (
        f"an unfinished sample was discarded: {change[0].strip('-')} differs" in said
        and "resuming" not in said
    )


def dies():
    raise KeyboardInterrupt


def test_a_prompt_that_fills_the_context_is_reported_before_any_is_completed(
    made, tmp_path, monkeypatch
):
    monkeypatch.setattr(sampling, "generate", lambda *_: pytest.fail("completed"))
    data = write_jsonl(tmp_path / "p.jsonl", [{"x": "w0"}] * 3 + [{"x": "w1 " * 400}])
    result = twcli("sample", "--run", made / "run", "--data", data, "--out", tmp_path / "g.jsonl")
    assert (
        result.exit_code == 2
        and "fills the context" in result.stderr
        and not list(tmp_path.glob("g*"))
    )


def test_latents_compared_interactively(made):
    flags = [
        "sample",
        "--run",
        str(made / "run"),
        "--interactive",
        "--max-new-tokens",
        "4",
        "--temperature",
        "0",
    ]
    result = CliRunner().invoke(main, flags, input="w0 w1\n" + "w2 " * 200 + "\nw3\n\nw4\n")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    # two prompts by three latents; the third filled the context, the empty line ended it
    assert len(lines) == 6
    assert all(re.fullmatch(r"z\d  [01]\.\d\d  .*", line) for line in lines) and [
        line[1] for line in lines
    ] == list("012012")
    assert "fills the context" in result.stderr
    alone = [
        json.loads(line)
        for line in ok(
            "sample",
            "--run",
            made / "run",
            "--x",
            "w3",
            "--latent",
            "all",
            "--temperature",
            0,
            "--max-new-tokens",
            4,
        ).stdout.splitlines()
    ]
    assert {f"z{one['latent']}": one["y"] for one in alone}.items() <= {
        line[:2]: line[10:] for line in lines[3:]
    }.items()
    result = CliRunner().invoke(
        main,
        ["sample", "--model", str(made / "model"), "--interactive", "--max-new-tokens", "4"],
        input="w0\n",
    )
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1
    refused(
        "sample", "--run", made / "run", "--interactive", "--x", "w0", says="give one of --data"
    )


def test_commands_run_again_say_that_they_are_done(made):
    before = (made / "run" / "metrics.jsonl").read_text()
    assert "already trained" in ok("train", *train_flags(made), "--out", made / "run").stderr
    assert (made / "run" / "metrics.jsonl").read_text() == before
    again = ok(
        "precompute",
        "--model",
        made / "model",
        "--data",
        made / "data.jsonl",
        "--out",
        made / "b.h5",
    )
    assert "already complete" in again.stderr


def test_inspect_a_cache(made):
    found = json.loads(ok("inspect", made / "b.h5", "--verify", "--json").stdout)
    assert (found["kind"], found["rows"], found["problems"]) == ("cache", 60, [])
    assert 0 < found["profile"]["informative"] <= 1
    text = ok("inspect", made / "b.h5", "--verify").stdout
    assert "60 rows" in text and "every checksum matches" in text and "can weighting help? " in text
    histogram = found["profile"]["histogram"]
    assert [sum(part[key] for part in histogram) for key in ("tokens", "nats")] == pytest.approx(
        [1, 1]
    )


def test_inspect_compares_a_cache_with_a_model_and_data(made, tmp_path):
    flags = ("inspect", made / "b.h5", "--verify", "--model", made / "model")
    shown = ok(*flags, "--data", made / "data.jsonl").stdout
    records = make_records(20, 3)
    (line,) = [line for line in shown.splitlines() if line.startswith("line 60: <bos> <x> ")]
    assert re.sub(r"\[\d+\.\d\]", "", line).endswith(records[-1]["y"]) and re.search(
        r"\w\[\d\.\d\]", line
    )
    records[4]["y"] += " w1"
    other = twcli(*flags, "--data", write_jsonl(tmp_path / "d.jsonl", records))
    assert (
        other.exit_code == 1
        and "another data" in other.stderr
        and "line 5 of the data" in other.stderr
    )
    make_model(seed=3).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    other = twcli(
        "inspect",
        made / "b.h5",
        "--verify",
        "--model",
        tmp_path / "model",
        "--data",
        made / "data.jsonl",
    )
    assert other.exit_code == 1 and "another weights" in other.stderr
    renamed = [{"q": r["x"], "a": r["y"]} for r in make_records(20, 3)]
    ok(
        *flags,
        "--data",
        write_jsonl(tmp_path / "renamed.jsonl", renamed),
        "--x-field",
        "q",
        "--y-field",
        "a",
    )
    refused(*flags, says="give both, with --verify")
    refused(
        "inspect",
        made / "run",
        "--verify",
        "--model",
        made / "model",
        "--data",
        made / "data.jsonl",
        says="give both, with --verify",
    )


def test_inspect_a_run(made):
    found = json.loads(ok("inspect", made / "run", "--verify", "--json").stdout)
    assert (found["kind"], found["done"], found["steps"], found["problems"]) == ("run", True, 4, [])
    text = ok("inspect", made / "run").stdout
    for part in (
        "finished, 4 steps",
        "z-sensitivity: ",
        "effective t0 / T",
        "T / t0",
        "gradient norms: posterior",
        "     batch_tokens: 200\n",
        f"page: {made / 'run' / 'report.html'}",
    ):
        assert part in text
    assert "uniform_weight" not in text and "uniform_weight" in found["settings"]
    assert len(text.splitlines()) < 28


@pytest.mark.slow
def test_inspect_begins_with_the_verdict_that_train_or_eval_came_to_last(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    shutil.copy(made / "verdict.json", run)

    def inspected():
        found = json.loads(ok("inspect", run, "--json").stdout)
        lines = " ".join(ok("inspect", run).stdout.split())
        return found["verdict"], lines

    of_training, text = inspected()
    assert of_training["command"] == "twcli train"
    assert of_training["advice"] == f"Next: twcli eval --run {run} --data TEST.jsonl"  # moved since
    assert text.startswith(f"{of_training['sentence']} {of_training['advice']}")
    judged = ok("eval", "--run", run, "--data", made / "data.jsonl", "--bootstrap", 20)
    of_eval, text = inspected()
    assert of_eval["command"] == "twcli eval" and of_eval["data"] == str(made / "data.jsonl")
    said = f"{of_eval['sentence']} {of_eval['advice']}"
    assert " ".join(judged.stdout.split()).startswith(said) and text.startswith(said)
    for damaged in (b"", b'{"kind": "works"}', b'["works"]', b"\xff"):
        (run / "verdict.json").write_bytes(damaged)
        verdict, text = inspected()
        assert verdict is None and f"twcli eval --run {run} --data" in text
    shutil.rmtree(run / "model")  # as in a training that was killed
    _, text = inspected()
    assert text.startswith("Not decided: the training is not finished")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["model/model.safetensors", "model/tokenizer.json", "posterior.safetensors", "metrics.jsonl"],
)
def test_a_damaged_run_is_neither_evaluated_nor_sampled(made, tmp_path, name):
    shutil.copytree(made / "run", tmp_path / "run")
    data = bytearray((tmp_path / "run" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "run" / name).write_bytes(data)
    refused(
        "eval",
        "--run",
        tmp_path / "run",
        "--data",
        made / "data.jsonl",
        says=[name, "its checksum differs"],
    )
    refused("sample", "--run", tmp_path / "run", "--x", "w0", says=[name, "its checksum differs"])


def test_a_changed_setting_of_a_finished_run_is_found(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("beta: 0.1", "beta: 0.3"))
    result = twcli("inspect", tmp_path / "run", "--verify")
    assert result.exit_code == 1 and "beta is 0.3, but was 0.1 in training" in result.stderr


@pytest.mark.parametrize(
    "name", ["b.h5", "run/model/model.safetensors", "run/posterior.safetensors", "run/checkpoints"]
)
def test_inspect_finds_a_flipped_bit(made, tmp_path, name):
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "b.h5", tmp_path / "b.h5")
    file = tmp_path / name
    if file.is_dir():
        file = next(file.rglob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    result = twcli("inspect", tmp_path / ("b.h5" if name == "b.h5" else "run"), "--verify")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "damaged" in result.stderr


# The number of latents


@pytest.mark.slow
def test_latents_are_counted_and_a_resumed_run_keeps_the_number(made, tmp_path):
    flags = list(train_flags(made))
    number = flags.index("--latents")
    del flags[number : number + 2]
    said = ok("train", *flags, "--out", tmp_path / "run").stderr
    assert re.search(r"\nexpected alignment \(label-free\): -?\d\.\d{3} of 1", said)
    counted = r"latents: (\d+); support by number of latents: 2: -?\d"
    found = int(re.search(counted, said)[1])
    assert f"latents: {found}\n" in (tmp_path / "run" / "config.yaml").read_text()
    tokens = json.loads((tmp_path / "run" / "model" / "tokenizer.json").read_text())["added_tokens"]
    assert sum(re.fullmatch(r"<z\d+>", token["content"]) is not None for token in tokens) == found
    shutil.rmtree(tmp_path / "run" / "model")  # as a kill before the export would leave it
    again = ok("train", *flags, "--out", tmp_path / "run").stderr
    assert "resuming after step" in again and f"latents: {found}; support" in again
    tried, once_more = (re.findall(r"(\d):\s+-?\d\.\d{3}", text) for text in (said, again))
    # held against those beside it, as any number is
    beside = {str(number) for number in range(found - BELOW, found + ABOVE + 1)}
    assert tried == list("234567")
    assert {str(found)} < set(once_more) <= beside
    refused(
        "train",
        *flags,
        "--latents",
        found + 1,
        "--out",
        tmp_path / "run",
        says=f"holds a run with latents: {found}, this one has {found + 1}",
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--latents", "many"], "'many' is no number, and not auto"),
        (
            ["--latents", "auto", "--warm-start", "none"],
            "--latents auto, the default: counts the strategies that the naming finds",
        ),
        (["--warm-start", "none"], "--warm-start is none; give a number"),
    ],
)
def test_what_is_no_number_of_latents(made, tmp_path, flags, says):
    refused(
        "train",
        "--model",
        made / "model",
        "--data",
        made / "data.jsonl",
        "--baseline",
        made / "b.h5",
        *flags,
        "--out",
        tmp_path / "run",
        says=says,
    )


def test_latents_cannot_be_counted_in_a_few_records(made, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", make_records(15, 1))
    ok("precompute", "--model", made / "model", "--data", data, "--out", tmp_path / "b.h5")
    refused(
        "train",
        "--model",
        made / "model",
        "--data",
        data,
        "--baseline",
        tmp_path / "b.h5",
        "--latents",
        "auto",
        "--out",
        tmp_path / "run",
        "--quiet",
        says=["--latents auto", "too few records"],
    )


# Configuration


@pytest.mark.slow
def test_a_flag_wins_over_the_file_also_where_it_is_the_default(made, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"data: {made / 'data.jsonl'}\nlatents: 3\nsteps: 2\nbeta: 0.5\nbatch-tokens: 200\n"
    )
    ok(
        "train",
        "--config",
        tmp_path / "c.yaml",
        "--model",
        made / "model",
        "--baseline",
        made / "b.h5",
        "--out",
        tmp_path / "run",
        "--beta",
        0.1,
        "--device",
        "cpu",
    )
    settings = json.loads(ok("inspect", tmp_path / "run", "--json").stdout)["settings"]
    assert (settings["beta"], settings["steps"], settings["batch_tokens"]) == (0.1, 2, 200)


def test_unknown_keys_in_the_file_are_refused(made, tmp_path):
    (tmp_path / "c.yaml").write_text("latentz: 3\n")
    refused(
        "train",
        "--config",
        tmp_path / "c.yaml",
        *train_flags(made),
        "--out",
        tmp_path / "run",
        says=["c.yaml", "'latentz'"],
    )
    assert not (tmp_path / "run").exists()


# What a user can get wrong


BAD_DATA = {
    "malformed": ('{"x": "w0", "y": "w1"}\n{"x": "w0" "y"}\n', ["d.jsonl:2", "not valid JSON"]),
    "missing field": ('{"x": "w0", "y": "w1"}\n{"x": "w0"}\n', ["d.jsonl:2", "'y' is missing"]),
    "wrong type": ('{"x": "w0", "y": 3}\n', ["d.jsonl:1", "'y' must be text"]),
    "empty y": ('{"x": "w0", "y": " "}\n', ["d.jsonl:1", "'y' is empty"]),
    "too long": (
        json.dumps({"x": "w0", "y": "w1 " * 200}) + "\n",
        ["d.jsonl:1", "more than the limit of 128"],
    ),
    "no records": ("", ["d.jsonl", "no records"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(made, tmp_path, case):
    content, says = BAD_DATA[case]
    (tmp_path / "d.jsonl").write_text(content)
    files = {"--data": tmp_path / "d.jsonl", "--model": made / "model"}
    flags = [part for pair in files.items() for part in pair]
    refused("precompute", *flags, "--out", tmp_path / "b.h5", says=says)
    refused(
        "train",
        *flags,
        "--baseline",
        made / "b.h5",
        "--latents",
        2,
        "--out",
        tmp_path / "run",
        says=says,
    )
    refused("eval", "--run", made / "run", "--data", tmp_path / "d.jsonl", says=says)
    assert not list(tmp_path.glob("b.h5*"))
    assert not (tmp_path / "run").exists()


def test_missing_files(made, tmp_path):
    refused(
        "precompute",
        "--model",
        made / "model",
        "--data",
        tmp_path / "no.jsonl",
        "--out",
        tmp_path / "b.h5",
        says="no.jsonl",
    )
    refused(
        "precompute",
        "--model",
        tmp_path / "none",
        "--data",
        made / "data.jsonl",
        "--out",
        tmp_path / "b.h5",
        says="none",
    )
    refused(
        "train",
        *train_flags(made),
        "--out",
        tmp_path / "run",
        "--baseline",
        tmp_path / "no.h5",
        says="no.h5",
    )
    refused("eval", "--run", tmp_path / "none", "--data", made / "data.jsonl", says="holds no run")
    refused("inspect", tmp_path / "none", says="no such file or folder")
    refused("sample", "--model", tmp_path / "none", "--x", "w0", says="none")


def test_a_model_without_tags_or_with_another_tokenizer(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    tokenizer = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    renamed = json.dumps(tokenizer).replace("<z>", "<latent>").replace("</z>", "</latent>")
    (tmp_path / "model" / "tokenizer.json").write_text(renamed)
    settings = (
        (tmp_path / "model" / "tokenizer_config.json")
        .read_text()
        .replace("<z>", "<latent>")
        .replace("</z>", "</latent>")
    )
    (tmp_path / "model" / "tokenizer_config.json").write_text(settings)
    flags = ("--data", made / "data.jsonl", "--out", tmp_path / "b.h5")
    # a latent section is not in the z-free sequence
    ok("precompute", "--model", tmp_path / "model", *flags)
    renamed = renamed.replace("<x>", "<question>")
    (tmp_path / "model" / "tokenizer.json").write_text(renamed)
    (tmp_path / "model" / "tokenizer_config.json").write_text(settings.replace("<x>", "<question>"))
    said = ok("precompute", "--model", tmp_path / "model", *flags, "--overwrite").stderr
    assert "never trained on <x>, so b_t will be poor" in said
    big = make_tokenizer()
    big.add_tokens([f"extra{i}" for i in range(9)])
    shutil.rmtree(tmp_path / "model")
    make_model().save_pretrained(tmp_path / "model")
    big.save_pretrained(tmp_path / "model")
    out = ("--out", tmp_path / "c.h5")
    # ids without a row in the embeddings are harmless until a text has them
    ok("precompute", "--model", tmp_path / "model", "--data", made / "data.jsonl", *out)
    records = [{"x": "w0", "y": "w1"}, {"x": "w0 extra3", "y": "w1"}]
    data = write_jsonl(tmp_path / "extra.jsonl", records)
    refused(
        "precompute",
        "--model",
        tmp_path / "model",
        "--data",
        data,
        "--out",
        tmp_path / "d.h5",
        says=["extra.jsonl:2", "extra3"],
    )


def test_a_cache_of_something_else(made, tmp_path):
    make_model(seed=3).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    refused(
        "train",
        *train_flags(made),
        "--out",
        tmp_path / "run",
        "--model",
        tmp_path / "model",
        says=["b.h5", "weights"],
    )
    records = make_records(20, 3)
    records[7]["y"] = "w9"
    data = write_jsonl(tmp_path / "d.jsonl", records)
    refused(
        "train",
        *train_flags(made),
        "--out",
        tmp_path / "run",
        "--data",
        data,
        says=["b.h5", "line 8"],
    )
    (tmp_path / "b.h5").write_text("no HDF5")
    refused(
        "train",
        *train_flags(made),
        "--out",
        tmp_path / "run",
        "--baseline",
        tmp_path / "b.h5",
        says="is not an HDF5 file",
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--latents", "1"], "--latents: 1 is too small"),
        (["--latents", "x"], "--latents"),
        (["--steps", "0"], "--steps"),
        (["--steps", "2", "--epochs", "2"], "exclude each other"),
        (["--weighting", "none"], "--weighting"),
        (["--beta", "nan"], "--beta"),
        (["--nonsense"], "--nonsense"),
        (["--max-length", "1000"], "context holds 128"),
        (["--device", "cuda"], "--device cuda"),
    ],
)
def test_bad_flags(made, tmp_path, flags, says):

    if flags == ["--device", "cuda"] and torch.cuda.is_available():
        flags, says = ["--device", "mps"], "--device mps"
    refused("train", *train_flags(made), "--out", tmp_path / "run", *flags, says=says)


def test_required_options_are_named():
    refused("train", says="--data is required")
    refused("precompute", "--data", "d.jsonl", says="--model is required")
    refused("inspect", says="F.h5|RUN")
    refused("foo", says="foo")


def test_unwritable_output(made):
    refused(
        "precompute",
        "--model",
        made / "model",
        "--data",
        made / "data.jsonl",
        "--out",
        "/proc/none/b.h5",
        says="/proc/none",
    )
    refused("train", *train_flags(made), "--out", "/proc/none/run", says="/proc/none")
    refused(
        "sample",
        "--model",
        made / "model",
        "--x",
        "w0",
        "--out",
        "/proc/none/g.jsonl",
        says="/proc/none",
    )
    refused(
        "sample",
        "--model",
        made / "model",
        "--x",
        "w0",
        "--out",
        made,
        "--overwrite",
        says="is a folder; name a file",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ("nothing", "MODULE:FUNCTION"),
        ("no_such_module:judge", "cannot be imported"),
        ("tests.conftest:none", "cannot be imported"),
        ("tests.conftest:WORDS", "is not a function"),
        ("tests.conftest:broken_judge", "raised ZeroDivisionError"),
    ],
)
def test_bad_judges(made, judge, says):
    refused(
        "eval",
        "--run",
        made / "run",
        "--data",
        made / "data.jsonl",
        "--judge",
        judge,
        "--quiet",
        says=says,
    )


def test_a_run_that_is_not_finished_cannot_be_evaluated(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    refused("eval", "--run", tmp_path / "run", "--data", made / "data.jsonl", says="not finished")


# The terminal


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help_fits_80_columns_and_describes_every_option(command):
    lines = ok(*command, "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line.rstrip().endswith("...") for line in lines[1:])


def options_of(text):
    return re.findall(r"^  (?:-h, )?(-[\w-]+)", text, re.MULTILINE)


def test_the_help_of_train_fits_a_screen_and_the_rest_is_one_option_away():
    short, everything = (ok("train", flag).stdout for flag in ("--help", "--help-all"))
    assert len(options_of(short)) <= 18
    groups = ["Inputs", "Strategies", "Optimisation", "Resources", "Output"]
    assert re.findall(r"^(\w.*):$", short, re.MULTILINE) == groups
    names = {flag_of(field.name) for field in dataclasses.fields(TrainConfig)}
    assert names <= set(options_of(everything)) and set(options_of(short)) <= {
        *options_of(everything)
    }
    literature = everything.partition("For comparison with the literature:")[2]
    assert {"--ablation", "--free-bits", "--divergence", "--beta-cycles"} <= {
        *options_of(literature)
    }


@pytest.mark.parametrize(
    ("command", "option", "says"),
    [
        ("train", "--baseline-precision", "holds its precision; leave it out"),
        ("train", "--strategy-field", "only `twcli eval` reads the strategies"),
        ("precompute", "--strategy-field", "only `twcli eval` reads the strategies"),
        ("export", "--precision", "is --dtype here"),
    ],
)
def test_an_option_that_is_gone_says_what_to_do_instead(tmp_path, command, option, says):
    result = twcli(command, option, "fp32")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"{command}: {option} " in result.stderr and says in result.stderr
    (tmp_path / "c.yaml").write_text(f"{option[2:]}: fp32")
    refused(command, "--config", tmp_path / "c.yaml", says=["c.yaml: ", option, says])


def test_version():
    assert ok("--version").stdout == f"twcli {__version__}\n"


def test_help_does_not_import_torch():
    code = (
        "import sys, twcli.cli.main; sys.exit('torch' in sys.modules or 'transformers' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_quiet_is_quiet(made):
    result = ok(
        "eval",
        "--run",
        made / "run",
        "--data",
        made / "data.jsonl",
        "--bootstrap",
        20,
        "--quiet",
        "--json",
    )
    assert result.stderr == ""


@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback(made):
    command = (
        f"{sys.executable} -m twcli sample --run {made / 'run'} --data {made / 'data.jsonl'} "
        "--latent all -n 40 --max-new-tokens 3"
    )
    result = subprocess.run(
        f"{command} | head -c 1", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["copies", "shards"])
def test_two_processes_train_as_one_and_resume(made, tmp_path, all_ways, shard):
    flags = [*map(str, train_flags(made)), "--steps", "20", "--checkpoint-every", "10", *shard]
    if shard:  # in the other case the processes find the names
        names = str(tmp_path / "names.jsonl")
        settings = ("--model", made / "model", "--data", made / "data.jsonl", "--device", "cpu")
        ok("discover", *settings, "--latents", 3, "--out", names)
        flags += ["--names", names]
    launch = [
        sys.executable,
        *LAUNCH,
        "-m",
        "twcli",
        "train",
        *flags,
        "--out",
        str(tmp_path / "run"),
    ]
    first = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert first.returncode == 0, first.stderr[-2000:]
    assert first.stderr.count("done: ") == 1  # one process prints
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    ok("train", *flags, "--accumulate", 2, "--out", tmp_path / "alone")
    together, alone = (
        [json.loads(line) for line in text.splitlines()]
        for text in (metrics, (tmp_path / "alone" / "metrics.jsonl").read_text())
    )
    assert [m["stage"] for m in together] == [m["stage"] for m in alone] and len(together) == 20
    for one, two in zip(together, alone, strict=True):
        assert one["records"] == two["records"]
        for name in ("loss", "mutual_information", "gradient_norm"):
            assert one[name] == pytest.approx(two[name], abs=1e-5, rel=1e-5)
    two, one = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "alone")
    )
    assert two.keys() == one.keys() and all(
        torch.allclose(two[name], one[name], atol=1e-4) for name in one
    )
    shutil.rmtree(tmp_path / "run" / "model")  # as if killed before the export
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000020")
    assert (
        "resuming after step 10"
        in subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=200).stderr
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_shards_train_a_learned_posterior_whatever_the_shapes_of_their_batches(tmp_path):
    records = [
        {
            "x": " ".join([f"w{p}", *["w1"] * (59 if p % 2 else 0)]),
            "y": " ".join([f"w{c}", *["w2"] * (1 if p % 2 else 39)]),
        }
        for p in range(16)
        for c in range(2)
    ]
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    common = [
        "--model",
        tmp_path / "model",
        "--data",
        write_jsonl(tmp_path / "d.jsonl", records),
        "--device",
        "cpu",
    ]
    ok("precompute", *common, "--out", tmp_path / "b.h5")
    train = [
        "train",
        *map(str, common),
        "--baseline",
        str(tmp_path / "b.h5"),
        "--latents",
        "4",
        "--steps",
        "4",
        "--batch-tokens",
        "150",
        "--warm-start",
        "none",
        "--shard",
        "--out",
        str(tmp_path / "run"),
    ]
    result = subprocess.run(
        [sys.executable, *LAUNCH, "-m", "twcli", *train],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_one_process_of_a_job_tells_the_dry_run(made, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = twcli("train", *train_flags(made), "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0 and result.output == ""


def test_a_dry_run_tells_and_writes_nothing(made, tmp_path):
    (tmp_path / "c.yaml").write_text("beta: 0.5\n")
    said = ok(
        "train",
        *train_flags(made),
        "--config",
        tmp_path / "c.yaml",
        "--out",
        tmp_path / "run",
        "--dry-run",
    ).stdout
    for part in (
        "records: 60 of 20 prompts",
        "supervised part in [[ ]]: '<bos> <x> w0",
        "</x> <y>[[w0",
        "</y>]]<eos>'",
        "activations (2 sequences a record",
        "name the records",
        "of it checkpoints",
        "given: ",
        "--latents 3,",
        f"{tmp_path / 'c.yaml'}: --beta 0.5",
        "--seed 0,",
        "length: 4 steps",
    ):
        assert part in said, said
    assert "time, about: " in said.rpartition("defaults, those that follow")[2]  # cost comes last
    said = ok(
        "precompute",
        "--model",
        made / "model",
        "--data",
        made / "data.jsonl",
        "--out",
        tmp_path / "b.h5",
        "--dry-run",
    ).stdout
    assert "375 of them supervised" in said
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


# Pretrained models: other frames, LoRA, GGUF


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A model whose tokenizer has a chat template and no tags, and data."""
    folder = tmp_path_factory.mktemp("chat")
    make_model().save_pretrained(folder / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}w19 {{ m['content'] }} <eos> {% endfor %}"
        "{% if add_generation_prompt %}w19 {% endif %}"
    )
    tokenizer.save_pretrained(folder / "model")
    write_jsonl(folder / "data.jsonl", make_records(20, 3))
    ok(
        "precompute",
        "--model",
        folder / "model",
        "--data",
        folder / "data.jsonl",
        "--out",
        folder / "b.h5",
        "--template",
        "chat",
    )
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_lora_in_a_chat_template_from_data_to_samples(chat, tmp_path):
    from peft import PeftModel
    from transformers import AutoTokenizer

    run = tmp_path / "run"
    ok(
        "train",
        *train_flags(chat),
        "--template",
        "chat",
        "--adapt",
        "lora",
        "--lora-rank",
        4,
        "--lora-targets",
        "q_proj,up_proj",
        "--out",
        run,
    )
    figures = json.loads(
        ok(
            "eval",
            "--run",
            run,
            "--data",
            chat / "data.jsonl",
            "--judge",
            JUDGE,
            "--bootstrap",
            20,
            "--json",
        ).stdout
    )
    assert figures["likelihood"]["gain"] is not None and figures["answer_accuracy"] is not None
    drawn = ok(
        "sample", "--run", run, "--x", "w0 w1", "--max-new-tokens", 5, "--latent", "all", "-n", 2
    ).stdout
    assert {json.loads(line)["latent"] for line in drawn.splitlines()} <= {0, 1, 2}
    merged = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    base = AutoModelForCausalLM.from_pretrained(chat / "model")
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, run / "adapter").eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w0 w1"}],
        add_generation_prompt=True,
        latent=1,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    assert tokenizer.decode(ids[0]).split()[-5:] == ["<eos>", "w19", "<z>", "<z1>", "</z>"]
    assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    card = (run / "model" / "README.md").read_text()
    assert (
        "Made from `model`" in card and "data | `data.jsonl`" in card and str(tmp_path) not in card
    )
    assert "3 latent strategies" in card and "    latent=0,\n" in card and "`<z1>`, `<z2>`" in card
    ok("inspect", run, "--verify")
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    result = twcli("inspect", run, "--verify")
    assert (
        result.exit_code == 1 and "adapter_model.safetensors: its checksum differs" in result.stderr
    )


@pytest.mark.slow
def test_the_model_alone_is_enough(made):
    lines = [
        json.loads(line)
        for line in ok(
            "sample",
            "--run",
            made / "run",
            "--x",
            "w0 w1",
            "--latent",
            "all",
            "--temperature",
            0,
            "--max-new-tokens",
            8,
        ).stdout.splitlines()
    ]
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "examples" / "use_model.py",
            "--model",
            made / "run" / "model",
            "--x",
            "w0 w1",
            "--max-new-tokens",
            "8",
        ],
        cwd="/",
        capture_output=True,
        text=True,
    )
    found = dict(re.findall(r"--- z(\d)\n(.*)\n", result.stdout))
    assert set(found) == {"0", "1", "2"}, result.stderr
    assert all(found[str(line["latent"])] == line["y"] for line in lines)


def test_the_example_of_the_model_alone_wants_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["use_model.py", "--model", str(tmp_path), "--x", "w0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / "use_model.py"))
    assert ended.value.code == 2
    assert f"error: --model {tmp_path}: " in capsys.readouterr().err


@pytest.mark.slow
def test_lora_trains_its_updates_the_new_rows_and_nothing_else(chat, tmp_path):

    ok(
        "train",
        *train_flags(chat),
        "--template",
        "chat",
        "--adapt",
        "lora",
        "--lora-targets",
        "q_proj",
        "--out",
        tmp_path / "run",
    )
    before, after = (
        load_file(folder / "model" / "model.safetensors") for folder in (chat, tmp_path / "run")
    )
    changed = {name for name in before if not before[name].equal(after[name][: len(before[name])])}
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name for name in changed if "q_proj" not in name} == tables
    for name in tables:
        # <z> and </z>
        assert (before[name] != after[name][: len(before[name])]).any(
            1
        ).nonzero().flatten().tolist() == [8, 9]


def test_a_cache_in_another_frame_is_refused(chat, tmp_path):
    ok(
        "inspect",
        chat / "b.h5",
        "--verify",
        "--model",
        chat / "model",
        "--data",
        chat / "data.jsonl",
    )
    refused(
        "train",
        *train_flags(chat),
        "--out",
        tmp_path / "run",
        says=["b.h5", "made with another template"],
    )


@pytest.mark.slow
def test_bad_templates_and_lora_settings(chat, made, tmp_path):
    flags = ("--out", tmp_path / "run")
    refused(
        "train",
        *train_flags(made),
        *flags,
        "--template",
        "chat",
        says="no chat template; give --template FILE",
    )
    refused(
        "train",
        *train_flags(made),
        *flags,
        "--template",
        tmp_path / "none",
        says=["--template", "No such file"],
    )
    refused(
        "train",
        *train_flags(made),
        *flags,
        "--adapt",
        "lora",
        "--lora-targets",
        "nonesuch",
        "--quiet",
        says="--lora-targets nonesuch",
    )
    refused(
        "train",
        *train_flags(made),
        *flags,
        "--adapt",
        "lora",
        "--posterior",
        "separate",
        says="--posterior separate",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("q_proj,nonesuch", "has no layer nonesuch; it has down_proj, gate_proj, k_proj"),
        ("q_proj,", "holds an empty name"),
        ("lm_head", "in lm_head only the latent tokens' rows are trained"),
        ("q_proj,embed_tokens", "in embed_tokens only the latent tokens' rows"),
    ],
)
def test_every_lora_target_is_a_layer_that_can_be_updated(targets, says):
    with pytest.raises(UserError, match=says):
        add_lora(make_model(), [8, 9], rank=2, alpha=2.0, targets=targets, seed=0)


def test_the_example_and_the_readme_write_the_frame_of_the_model_card(monkeypatch, capsys):
    encoder = ExampleEncoder(make_tokenizer(), "tiny", latent_tokens=11)
    encoder.add_latents(2)
    asked = []

    class Tokenizer:
        bos_token = encoder.tokenizer.bos_token
        get_added_vocab = encoder.tokenizer.get_added_vocab

        def __call__(self, text, **_settings):
            asked.append(text)
            return {"input_ids": torch.zeros(1, 1), "attention_mask": None}

        def decode(self, *_ids, **_settings):
            return "y"

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda _: Tokenizer())
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained",
        lambda _: SimpleNamespace(generate=lambda input_ids, **_settings: input_ids),
    )
    monkeypatch.setattr(sys, "argv", ["use_model.py", "--model", "none", "--x", "w0 w1"])
    runpy.run_path(str(ROOT / "examples" / "use_model.py"))
    assert capsys.readouterr().out == "--- z0\ny\n--- z1\ny\n"
    config = TrainConfig(model="M", data="D", baseline="B", latents=2, out="R", latent_tokens=11)
    (shown,) = re.findall(r"```text\n(.*)\n```", model_card(config, encoder, {}, 4))
    assert asked[0] == shown.replace("{x}", "w0 w1") and len(asked) == 2
    template = (
        encoder.template.text.split("{y}")[0]
        .replace("{x}", "9 3 14 7 0")
        .replace("{z}", "<z><z2></z>")
    )
    assert f'text = "{template}"' in (ROOT / "docs" / "tutorials" / "demo.md").read_text()


def test_memory_that_runs_out_is_one_line(made, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it.")

    monkeypatch.setattr("twcli.commands.precompute.precompute", full)
    result = twcli(
        "precompute",
        "--model",
        made / "model",
        "--data",
        made / "data.jsonl",
        "--out",
        tmp_path / "b.h5",
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "twcli: out of memory: CUDA out of memory. Tried to allocate 2 GiB.; lower --batch-tokens"
    )


@pytest.mark.parametrize(
    ("command", "place", "says"),
    [
        (
            "precompute",
            "commands.precompute.precompute",
            "interrupted; run the same command again to resume",
        ),
        ("eval", "evaluation.evaluate.evaluate", "interrupted"),
    ],
)
def test_an_interruption_is_one_line(made, tmp_path, monkeypatch, command, place, says):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"twcli.{place}", interrupted)
    flags = {
        "precompute": ("--model", made / "model", "--out", tmp_path / "b.h5"),
        "eval": ("--run", made / "run"),
    }[command]
    result = twcli(command, *flags, "--data", made / "data.jsonl")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, f"twcli: {says}")


def test_what_a_library_says_of_an_interruption_is_one_too(made, tmp_path, monkeypatch):
    """transformers, stopped while it builds a model, raises "trying to pop from empty mode stack"
    as it cleans up, which is no fault of the model.
    """

    def building(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)  # the signal ends it
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", building)
    call = ("precompute", "--model", made / "model", "--data", made / "data.jsonl")
    result = twcli(*call, "--out", tmp_path / "b.h5")
    assert result.exit_code == 143
    assert result.stderr.splitlines()[-1] == (
        "twcli: interrupted; run the same command again to resume"
    )
    monkeypatch.undo()

    def broken(*_, **__):
        raise RuntimeError("trying to pop from empty mode stack")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", broken)
    refused(*call, "--out", tmp_path / "b.h5", says="pop from empty mode stack")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_no_traceback(made, monkeypatch, name):
    flags = {
        "stdin": ["sample", "--run", made / "run", "--interactive"],
        "stdout": ["eval", "--run", made / "run", "--data", made / "data.jsonl", "--bootstrap", 10],
        "stderr": [
            "precompute",
            "--model",
            made / "model",
            "--data",
            made / "data.jsonl",
            "--out",
            made / "b.h5",
        ],
    }[name]
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as ended:
        main([str(flag) for flag in flags])
    getattr(sys, name).close()
    assert ended.value.code == 0


def test_a_typed_prompt_that_is_not_utf_8_is_passed_over(made):
    flags = ["sample", "--run", str(made / "run"), "--interactive", "--max-new-tokens", "2"]
    result = CliRunner().invoke(main, flags, input=b"w0 \xff\nw1\n")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 3
    assert "x: byte 4 is not UTF-8\n" in result.stderr


@pytest.mark.parametrize("wish", ["", "1"])
def test_no_color_is_obeyed(made, wish):
    flags = [
        str(flag)
        for flag in (
            "inspect",
            made / "b.h5",
            "--verify",
            "--model",
            made / "model",
            "--data",
            made / "data.jsonl",
        )
    ]
    result = CliRunner().invoke(main, flags, color=True, env={"NO_COLOR": wish})
    assert result.exit_code == 0 and ("\x1b" in result.stdout) == (not wish)


def test_inspect_has_no_fields_without_data(made):
    refused(
        "inspect",
        made / "b.h5",
        "--x-field",
        "q",
        says="--x-field and --y-field are of the records at --data",
    )
