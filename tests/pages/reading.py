"""What is asked of every page: it is whole, can be read without eyes, and makes no request."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert('x')</script> & \"q\" </style></textarea>"


class Page(HTMLParser):
    """Elements of a page; one that is not closed, or closed by another's end, is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def headings(self):
        return [level for level, _ in self.elements if re.fullmatch(r"h[1-6]", level)]


def check(text):
    """Returns the page.

    Landmarks, headings without gaps, named charts, scoped headings of captioned tables, targets
    that exist, the keyboard where something scrolls, the one script that the policy allows.
    """
    page = Page(text)
    levels = [int(heading[1]) for heading in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1, landmark
    assert page.all("html") == [{"lang": "en"}]
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for name in ("href", "aria-labelledby"):
            target = attributes.get(name, "#main")
            assert target.lstrip("#") in ids or target.endswith("/report.html"), target
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0" and attributes["role"] == "region"
        if tag == "svg" and attributes.get("role") == "img":
            assert attributes["aria-label"]
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert not page.all("link") and not page.all("img") and len(page.all("script")) == 1
    assert not re.search(r"https?:|url\(|@import|\bsrc=", text)
    policy = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    styles = "default-src 'none'; style-src 'unsafe-inline'"
    assert policy == [f"{styles}; script-src 'sha256-{digest}'"]
    return page
