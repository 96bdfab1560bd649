import math
import re
from html.parser import HTMLParser

import pytest

from tests.evaluation.test_metrics import perfect
from twcli.evaluation.metrics import summarise
from twcli.evaluation.page import render_html

METRICS = [
    {
        "step": s,
        "loss": 3.0 - s / 60,
        "usage": 2.0,
        "records": 4,
        "mutual_information": s / 60,
        "posterior_entropy": 0.5,
        "posterior_mass": [0.6, 0.3, 0.1],
        "amplification": 2.0 if s % 2 else None,
        "expected_amplification": 3.0,
    }
    for s in range(1, 61)
]
EVIDENCE = {
    "posterior_mean": [0.6, 0.3, 0.1],
    "router_mean": [0.5, 0.4, 0.1],
    "strategies": ["a", "<b>"],
    "matrix": [[3.0, 1.0], [0.0, 2.0], [0.0, 0.0]],
    "provenance": {"torch": "2"},
    "texts": [{"x": "x & y", "pieces": [("Hello", 2.5), (" <i>", 0.0)]}],
    "samples": [{"x": "<script>", "ys": ["one", "", "two\nlines"]}],
}


@pytest.fixture(scope="module")
def page():
    return render_html(
        summarise(**perfect()), METRICS, {"out": "<script>alert(1)</script>"}, EVIDENCE
    )


def test_it_is_self_contained_and_escapes_what_users_named(page):
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page
    assert not re.search(r"(src|href)=|@import|url\(", page) and "http" not in page
    assert "prefers-color-scheme: dark" in page


def test_every_section_is_there(page):
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "The same prompt under each latent",
        "Latents and strategies",
        "Router against posterior",
        "Posterior usage during training",
        "Mutual information I(z; y)",
        "Loss",
        "Amplification of the posterior's gradient",
        "Token weights b_t",
        "All figures",
        "Settings",
        "Provenance",
    ]
    # a name beside its band, not colour alone
    assert page.count("<polygon") == 3 and "z0 60%" in page
    assert re.findall(r"<td class='cell'[^>]*>(\d+%)", page) == [
        "75%",
        "25%",
        "0%",
        "100%",
        "0%",
        "0%",
    ]
    assert "title='2.50 nats'" in page and "(empty)" in page


def test_tags_are_balanced(page):
    class Checker(HTMLParser):
        open_tags: tuple = ()

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "td", "th", "tr", "polygon", "polyline", "line", "rect"):
                self.open_tags = (*self.open_tags, tag)

        def handle_endtag(self, tag):
            if tag not in ("tr",):
                assert self.open_tags[-1] == tag, (self.getpos(), self.open_tags)
                self.open_tags = self.open_tags[:-1]

        def handle_startendtag(self, tag, attrs):
            pass

    checker = Checker()
    checker.feed(page)
    assert checker.open_tags == ()


def test_the_verdict_is_at_the_top():
    result = summarise(**perfect())
    assert "Works: asking for a latent" in render_html(result, METRICS, {}).split("<h2>")[0]
    failed = {**result, "verdict": {"kind": "failed", "sentence": "Failed: <x>.", "advice": ""}}
    top = render_html(failed, [], {}).split("<h2>")[0]
    assert "<p class='warning'><b>Failed: &lt;x&gt;.</b>" in top and "z0 = c" not in top


def test_next_to_no_information_looks_like_it():
    """The curve's axis reaches log K, whatever its own maximum is."""
    page = render_html(summarise(**perfect()), METRICS, {})
    chart = page.split("<h2>Mutual information")[1].split("</svg>")[0]
    assert f"{math.log(len(METRICS[0]['posterior_mass'])):.3g} nats" in chart
