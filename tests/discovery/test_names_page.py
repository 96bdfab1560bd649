"""The page and the lines: all is shown, escaped and readable."""

import copy

import pytest
from rich.cells import cell_len

from tests.pages.reading import HOSTILE, Page, check
from twcli.discovery.names_page import render_names_page, summary_lines


def example():
    phrases = [
        {"text": "step #", "z": 12.5, "share": 0.91, "elsewhere": 0.03},
        {"text": "then the ones", "z": 8.1, "share": 0.5, "elsewhere": 0.0},
        {"text": "⏎ - ", "z": 5.0, "share": 0.4},
    ]
    item = {"row": 12, "x": "What is 2 + 3?", "y": "Step 1\n  add", "probability": 0.987}
    cards = [
        {"latent": 0, "share": 0.55, "mean_probability": 0.98, "phrases": phrases},
        {"latent": 1, "share": 0.45, "mean_probability": 0.91, "phrases": []},
        {"latent": 2, "share": 0.0, "mean_probability": 0.0, "phrases": []},
    ]
    for card in cards:
        card["typical"] = [item] if card["share"] else []
    return {
        "title": "Strategies of train.jsonl",
        "date": "2024-05-01",
        "model": "models/base",
        "data": "my data/train.jsonl",
        "records": 12345,
        "prompts": 4115,
        "latents": 3,
        "used": 2,
        "verdict": "Two strategies, named right for about 9 in 10 completions.",
        "score": 0.9,
        "score_ci": [0.85, 0.94],
        "chance": 1 / 3,
        "stability": 0.97,
        "repulsion": 1.5,
        "proportions": [0.55, 0.45, 0.0],
        "per_latents": [
            {"latents": 2, "stability": 0.9, "evidence": 1.2, "score": 0.8},
            {"latents": 3, "stability": 0.97, "evidence": 1.3, "score": 0.9},
        ],
        "nested": "The answer with 3 latents splits one of the 2.",
        "latent_cards": cards,
        "ambiguous": [item | {"row": 99, "latents": [0, 1], "probability": 0.51}],
        "ambiguous_share": 0.041,
        "map": {"points": [[0.0, 0.0, 0], [1.0, 0.2, 1], [0.3, 0.9, -1], [1.2, 0.4, 1]]},
    }


@pytest.fixture
def summary():
    summary = example()
    for row in summary["per_latents"]:
        row["chosen"] = row["latents"] == 3
    return summary


def test_the_page_is_whole_and_shows_all(summary):
    page = check(render_names_page(summary | {"took": "12 min"}))
    for expected in (
        summary["verdict"],
        "Date 2024-05-01 Model models/base Data my data/train.jsonl",
        "Naming took 12 min",
        "12,345 of 4,115 prompts",
        "2 of 3 in use",
        "90% (95% interval 85% to 94%, the whisker)",
        "chance, 33%",
        "1.50 nats a pair",
        "91%, 30 times as often",
        "50%, only here",
        "Line 13, probability 0.99",
        "Prompt of line 13",
        "What is 2 + 3?",
        "Not used by the completions.",
        "No phrase sets it apart.",
        summary["nested"],
        "4.1% of the completions fit two latents",
        "Line 100, z0 or z1, probability 0.51",
        "twcli train --names names.jsonl --model models/base --data 'my data/train.jsonl'",
    ):
        assert expected in page.text, expected
    assert "Step 1\n  add" in page.texts  # new lines are kept


def replace_texts(value, text):
    """The same summary with `text` for every text, but where a text is a word of the format."""
    if isinstance(value, dict):
        return {key: replace_texts(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_texts(item, text) for item in value]
    return text if isinstance(value, str) else value


def test_everything_is_escaped(summary):
    repulsion = {"repulsion": "infinite", "names": HOSTILE}
    text = render_names_page(replace_texts(summary, HOSTILE) | repulsion)
    page = Page(text)
    assert text.count("<script") == 1 and text.count("</style>") == 1
    assert page.text.count("<script>alert('x')</script>") > 15
    assert len(page.elements) == len(Page(render_names_page(summary)).elements)


def test_invisible_characters_are_left_out(summary):
    odd = "a\x1b[31mb\u202ec\0d\ud800e\u200df\r"
    page = render_names_page(replace_texts(summary, odd) | {"repulsion": 0})
    lines = "\n".join(summary_lines(replace_texts(summary, odd) | {"repulsion": 0}))
    for text in (page, lines):
        text.encode()
        assert not set(text) & set("\x1b\u202e\0\r") and "a[31mbcde\u200df" in text


def test_structure_for_assistive_technology(summary):
    page = check(render_names_page(summary))
    assert len(page.all("table")) == 1
    assert len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"score_ci": None, "stability": None, "per_latents": [], "nested": None, "map": None},
        {"repulsion": "infinite"},
        {"ambiguous": [], "ambiguous_share": 0.0},
        {"map": {"points": []}},
        {"map": {"points": [[1.0, 1.0, 0]]}},
        {"latent_cards": [], "proportions": []},
        {"proportions": [0.0, 0.0, 0.0]},
        {"proportions": [1 / 40] * 40, "latents": 40},
        {"score": 0.0, "score_ci": [0.0, 1.0]},
    ],
)
def test_what_may_be_missing(summary, changes):
    before = copy.deepcopy(summary | changes)
    page = Page(render_names_page(summary | changes))
    assert "None" not in page.text and "nan" not in page.text.split()
    assert all(cell_len(line) <= 80 for line in summary_lines(summary | changes))
    assert summary | changes == before  # nothing is changed in place


def test_a_key_that_is_missing_is_an_error(summary):
    del summary["verdict"]
    with pytest.raises(Exception, match="verdict"):
        render_names_page(summary)
    with pytest.raises(KeyError, match="verdict"):
        summary_lines(summary)


def test_colours_repeat_after_the_eighth(summary):
    points = [[float(k), float(k % 3), k] for k in range(20)]
    text = render_names_page(summary | {"map": {"points": points}})
    Page(text)
    assert 'class="c7"' in text and 'class="c8"' not in text and ">z19</text>" in text


def test_lines(summary):
    lines = summary_lines(summary | {"page": "out/names.html"})
    assert lines == [
        "Two strategies, named right for about 9 in 10 completions.",
        "95% interval of the share named right: 85% to 94%. Stability: 0.97 of 1, how far",
        "namings of halves agree. 2 of 3 latents in use.",
        "",
        "z0      55%  sure 0.98   step # / then the ones / ⏎ -",
        "     line 13: Step 1 add",
        "",
        "z1      45%  sure 0.91   no phrase sets it apart",
        "     line 13: Step 1 add",
        "",
        "z2       0%  not used",
        "",
        "In phrases: ⏎ a new line, # any number.",
        "",
        "latents    stability     evidence  right if so",
        "      2         0.90         1.20         0.80",
        "      3         0.97         1.30         0.90  chosen",
        "right if so: share named right if that is the number of strategies.",
        "",
        "The answer with 3 latents splits one of the 2.",
        "",
        "Ambiguous: 4.1% of the completions.",
        "     line 100, z0 or z1: Step 1 add",
        "",
        "Page: out/names.html",
    ]


def test_what_speaks_for_a_number_is_explained(summary):
    for row in summary["per_latents"]:
        row["support"] = row.pop("evidence")
    for card in summary["latent_cards"]:
        card["phrases"] = []
    lines = summary_lines(summary)
    assert "latents    stability      support  right if so" in lines
    said = " ".join(lines)
    assert "support: nats that speak for a number, the most wins; right if so: " in said
    assert "In phrases" not in said
    page = check(render_names_page(summary))
    assert "support: nats that speak for a number, the most wins; right if so" in page.text


@pytest.mark.parametrize("text", ["word " * 100, "x" * 500, "漢字" * 200, "🙂" * 300, "é́" * 300])
def test_no_line_is_wider_than_the_terminal(summary, text):
    summary = replace_texts(summary, text) | {"repulsion": 0, "page": "/" + text}
    lines = summary_lines(summary)
    assert all(cell_len(line) <= 80 for line in lines)
    assert "\n" not in "".join(lines) and any("…" in line for line in lines)
