"""Tables between the marks of a page; the prose around them stays."""

import json

import pytest

from benchmarks import pages


def test_a_table_is_put_between_its_marks_and_at_the_end_of_a_page_without_them(tmp_path):
    page = tmp_path / "docs" / "page.md"
    pages.put(page, "one", "| a |")
    pages.put(page, "two", "| b |\n")
    page.write_text(f"# Title\n\n{page.read_text()}\nafter\n")
    pages.put(page, "one", "| c |")
    assert page.read_text() == (
        "# Title\n\n<!-- one: begin -->\n\n| c |\n\n<!-- one: end -->\n\n"
        "<!-- two: begin -->\n\n| b |\n\n<!-- two: end -->\n\nafter\n"
    )
    assert pages.between(page, "one") == "| c |"


@pytest.mark.parametrize("order", [["begin"], ["end"], ["end", "begin"]])
def test_a_page_whose_marks_are_broken_is_left_as_it_is(tmp_path, order):
    marks = dict(zip(("begin", "end"), pages.marks("one"), strict=True))
    text = "\nprose\n".join(["before", *(marks[name] for name in order), "after"])
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="one: end"):
        pages.put(page, "one", "| a |")
    assert page.read_text() == text


def test_figures_are_written_beside_the_tables_that_are_made_of_them(tmp_path):
    page, figures = tmp_path / "page.md", [{"seed": 0}, {"seed": 1}]
    pages.write(page, "one", lambda entries: f"| {len(entries)} |", figures)
    assert pages.between(page, "one") == "| 2 |"
    text = page.with_suffix(".json").read_text()
    assert json.loads(text) == figures and len(text.splitlines()) == 4
