import dataclasses
import math
import re

import pytest

from tests.evaluation.test_metrics import perfect
from tests.pages.reading import HOSTILE, check
from twcli.evaluation import several
from twcli.evaluation.metrics import summarise
from twcli.evaluation.page import About, evaluation_page, runs_page, training_page
from twcli.training.retention import Retention

METRICS = [
    {
        "step": s,
        "stage": "hold" if s < 20 else ("refine", "settle")[s % 2],
        "loss": 3.0 - s / 60,
        "usage": 2.0,
        "records": 4,
        "mutual_information": s / 60,
        "posterior_entropy": 0.5,
        "posterior_mass": [0.6, 0.3, 0.1],
        "amplification": 2.0 if s % 2 else None,
        "expected_amplification": 3.0,
    }
    | ({"held_out_nll": 9.0 - s / 60, "held_out_gain": [-1.0, None, 0.5]} if s % 20 == 0 else {})
    for s in range(1, 61)
]
ITEM = {"row": 6, "x": "<script>", "y": "y & z", "probability": 0.9}
CARDS = [
    {"latent": 0, "share": 0.6, "mean_probability": 0.9, "phrases": [], "typical": [ITEM]},
    {"latent": 1, "share": 0.4, "mean_probability": 0.8, "phrases": [], "typical": []},
    {"latent": 2, "share": 0.0, "mean_probability": 0.0, "phrases": [], "typical": []},
]
EVIDENCE = {
    "posterior_mean": [0.6, 0.3, 0.1],
    "router_mean": [0.5, 0.4, 0.1],
    "strategies": ["a", "<b>"],
    "matrix": [[3.0, 1.0], [0.0, 2.5], [0.0, 0.0]],
    "asked": {"strategies": ["a", "none known"], "counts": [[9, 1], [5, 5], [0, 10]]},
    "latent_cards": CARDS,
    "map": {"points": [[0.0, 0.0, 0], [1.0, 1.0, 1]]},
    "provenance": {"torch": "2"},
    "texts": [{"latent": 1, "x": "x & y", "pieces": [("Hello", 2.5), (" <i>", 0.0)], "more": True}],
    "samples": [{"x": "<script>", "ys": ["one a", "", "two\na"]}],
}
SETTINGS = {"model": "models/base", "data": "train.jsonl", "latents": 3, "out": HOSTILE}
ABOUT = About("runs/a", "2024-05-01", "test.jsonl", 4000.0, {1: "terse"}, "names.jsonl")


@pytest.fixture(scope="module")
def text():
    return evaluation_page(summarise(**perfect()), METRICS, SETTINGS, ABOUT, EVIDENCE)


@pytest.fixture(scope="module")
def page(text):
    return check(text)


def test_users_texts_are_escaped(text):
    assert text.count("<script") == 1 and "&lt;script&gt;" in text and "&lt;b&gt;" in text
    assert "prefers-color-scheme: dark" in text and len(text) < 5e6


def test_every_section_is_there(page):
    assert [a["href"] for a in page.all("a")] == [
        "#main",
        "#latents",
        "#samples",
        "#strategies",
        "#map",
        "#router",
        "#training",
        "#weights",
        "#figures",
        "#settings",
    ]


def test_the_title_block_says_of_what_the_page_is(page):
    beginning = page.text[: page.text.index("Works:")]
    for expected in (
        "Run runs/a",
        "Date 2024-05-01",
        "Model models/base",
        "Trained on train.jsonl",
        "Evaluated on test.jsonl",
        "Records 120 of 40 prompts",
        "Latents 3",
        "Training took 67 min",
    ):
        assert expected in beginning, expected


def test_the_original_model_is_beside_each_figure(page):
    for expected in (
        "asking for a latent gets its strategy 100% 100% to 100% cannot be asked chance 33%",
        "nats to write a record (less is better) 1.50 1.50 to 1.50 2.00 gain +0.50 nats",
        "0 (no latent) at most log K = 1.10",
    ):
        assert expected in page.text, expected


def test_cards_have_names_and_say_where_to_edit_them(page):
    mapping = summarise(**perfect())["alignment"]["mapping"]
    assert f"z0 {mapping['0']} 60% of the records" in page.text
    assert "z1 terse 40% of the records" in page.text  # the given name goes first
    assert 'Rename it: add "name": "..." on a line of latent 1 of names.jsonl' in page.text
    assert f"z2 {mapping['2']} Not used by the records." in page.text
    assert "latent 2 of names.jsonl" not in page.text


def test_matrices_are_shares_of_their_rows(text, page):
    cells = re.findall(r'<td class="heat n" style="--share: ([\d.]+)%">(\d+%)</td>', text)
    assert [shown for _, shown in cells] == [
        *("90%", "10%", "50%", "50%", "0%", "100%"),
        *("75%", "25%", "0%", "100%", "0%", "0%"),
    ]
    assert all(f"{float(share):.0f}%" == shown for share, shown in cells)
    assert "A row for the latent asked for" in page.text


def test_samples_show_where_they_differ(text):
    assert "<mark>one</mark>" in text and "<mark>two</mark>" in text and "(empty)" in text
    assert "<mark>a" not in text


def test_long_samples_are_cut_and_many_latents_have_labels():
    ys = ["word " * 1000 + f"{k}" for k in range(40)]
    evidence = {
        "samples": [{"x": "\x1b[31m" + "x" * 999, "ys": ys}],
        "latent_cards": [CARDS[0] | {"latent": k} for k in range(40)],
        "map": {"points": [[float(k), 0.0, k] for k in range(40)]},
    }
    text = evaluation_page(summarise(**perfect()), METRICS, SETTINGS, ABOUT, evidence)
    page = check(text)
    assert page.text.count("word…") == 40 and "\x1b" not in text
    assert "z39" in page.text and 'class="c7"' in text and 'class="c8"' not in text


def test_weights_are_of_a_latent(text):
    assert 'title="2.50 nats" style="--share: 100.00%">Hello</span>' in text
    assert "&lt;i&gt;</span>…" in text


def test_charts_reach_log_k_and_mark_the_stages(page):
    most = f"log K = {math.log(3):.2f}, the most"
    assert most in page.text and "renaming" in page.text
    said = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert any("names kept begins at step 1; renaming begins at step 20" in each for each in said)
    assert any(each.startswith("Each latent's held-out records") for each in said)
    assert any(each.startswith("Posterior usage: at step 60 z0 60%") for each in said)


def test_the_verdict_is_at_the_top():
    result = summarise(**perfect())
    failed = {**result, "verdict": {"kind": "failed", "sentence": "Failed: <x>.", "advice": "Do."}}
    top = evaluation_page(failed, [], SETTINGS, ABOUT, EVIDENCE).split("<h2")[0]
    assert '<p class="verdict failed">Failed: &lt;x&gt;.</p>' in top and "<p>Do.</p>" in top
    # at chance a mapping says nothing, and the given name stays
    bottom = check(evaluation_page(failed, [], SETTINGS, ABOUT, EVIDENCE)).text
    assert "z0 60% of the records" in bottom and "z1 terse" in bottom
    assert "ame it: " not in bottom


def test_what_may_be_missing():
    result = summarise(**{**perfect(judge=False), "labels": None, "frozen_nll": None})
    about = About("run", "2024-05-01")
    page = check(evaluation_page(result, [], SETTINGS, about))
    assert [a["href"] for a in page.all("a")] == ["#main", "#figures", "#settings"]
    assert "None" not in page.text and "Training took" not in page.text


def test_older_metrics_without_masses_or_stages():
    old = [{k: m[k] for k in ("step", "loss", "usage", "mutual_information")} for m in METRICS]
    page = check(evaluation_page(summarise(**perfect()), old, SETTINGS, ABOUT))
    assert "Mutual information I(z; y)" in page.text and "Posterior usage" not in page.text


def test_the_page_at_the_end_of_a_training():
    below = Retention(0, 50, 4.0, 3.0, -1.5, (-2.0, -1.0), -1.5, (-2.0, -1.0))
    verdict = {"kind": "partly", "sentence": "Works in part.", "advice": "twcli eval"}
    evidence = {key: EVIDENCE[key] for key in ("latent_cards", "map", "texts", "provenance")}
    about = About("run", "2024-05-01")
    text = training_page(verdict, [below.as_dict()], METRICS, SETTINGS, about, evidence)
    page = check(text)
    assert "nats to write one 5.50 original 4.00" in page.text and 'class="worse"' in text
    assert "gain -1.50 -2.00 to -1.00" in page.text
    assert "Name it: twcli export --run run --name 0=NAME" in page.text
    assert "renamed" not in page.text and "once it is chosen" not in page.text
    written = dataclasses.replace(below, written_gain=0.2, written_gain_ci=(0.1, 0.3)).as_dict()
    evidence["renamed"] = 0.25
    page = check(training_page(verdict, [written], METRICS, SETTINGS, about, evidence))
    assert "which renamed 25% of the records" in page.text
    assert "gain once it is chosen +0.20 +0.10 to +0.30" in page.text


def test_several_runs_are_laid_over_each_other():
    results = {f"seed-{i}": summarise(**perfect()) for i in range(2)}
    results["seed-1"]["score"] = 0.5
    metrics = dict.fromkeys(results, METRICS)
    text = runs_page(results, metrics, several.compare(results), SETTINGS, ABOUT)
    page = check(text)
    assert (
        page.text.startswith("Runs runs/a") and "Best by expected alignment: seed-1." in page.text
    )
    assert page.text.count("seed-0") >= 4  # the list and the legends of three charts
    assert "posterior.mutual_information 1.099 1.099 1.099" in page.text
    assert "Held-out records" in page.text
    assert [a["href"] for a in page.all("a") if "report" in a["href"]] == [
        "seed-0/report.html",
        "seed-1/report.html",
    ]


def test_the_title_block_names_files_without_their_folders():
    """Paths of five lines push the verdict down; the settings have them whole."""
    settings = {**SETTINGS, "model": "/home/a/models/base.gguf", "data": "/home/a/train.jsonl"}
    text = check(evaluation_page(summarise(**perfect()), METRICS, settings, ABOUT, {})).text
    assert "Model base.gguf Trained on train.jsonl" in text
