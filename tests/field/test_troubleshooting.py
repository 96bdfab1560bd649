"""The page of troubleshooting has what is said about people's models, templates and files: each
refusal of `data/` and `models/` has an entry, and each entry is of a message that there is.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "troubleshooting.md"
VALUE = "\0"  # in a message or an entry, where a value stands
OWN = 0.5  # share of an entry's letters that are no value of its message, at least
RUN = 10  # letters in a row by which a message is known


def _text(node):
    """What a message says, with `VALUE` for each value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return VALUE


def _tree(file):
    return ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def refusals():
    """(module, message) of each `UserError` whose words stand where it is made: not those about an
    option, which name it first, nor those that pass on what another one says.
    """
    found = []
    for folder in ("data", "models"):
        for file in sorted((ROOT / "twcli" / folder).glob("*.py")):
            for node in _tree(file):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                    message = _text(node.args[0])
                    words = re.findall("[a-z]{2,}", message)
                    if len(words) >= 3 and not message.startswith("--"):
                        found.append((f"{folder}/{file.name}", message))
    return found


def all_texts():
    """Every text of the package."""
    return "\n".join(
        _text(node)
        for file in sorted((ROOT / "twcli").rglob("*.py"))
        for node in _tree(file)
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
    )


@functools.cache
def entries():
    """Each message that the page names, with `VALUE` for its dots."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            messages = re.split(r" (?<!\\)\| ", line)[0]
            found += [
                re.sub(r"\.\.+", VALUE, text.replace("\\|", "|"))
                for text in re.findall("`([^`]+)`", messages)
            ]
    return found


def matches(entry, message):
    """Whether the entry is a part of what the message may say, most of it in the message's own
    words.
    """
    runs = {entry[i : i + 6] for i in range(len(entry) - 5)}
    if not any(run in message for run in runs):  # most pairs have nothing in common
        return False
    # at each place in the message: how many of the entry's letters are the message's own, at best
    reached = dict.fromkeys(range(len(message) + 1), 0)
    for letter in entry:
        after = {}
        for place, own in reached.items():
            if letter == VALUE:
                steps = [(later, own) for later in range(place, len(message) + 1)]
            else:
                steps = []
                while place < len(message) and message[place] == VALUE:
                    steps.append((place, own))  # the value holds the letter
                    place += 1
                if place < len(message) and message[place] == letter:
                    steps.append((place + 1, own + 1))
            for later, count in steps:
                after[later] = max(count, after.get(later, 0))
        reached = after
    letters = len(entry.replace(VALUE, ""))
    return bool(reached) and max(reached.values()) >= OWN * letters


def test_what_matches():
    assert matches("is of type image_url; only", f"{VALUE}: is of type {VALUE}; only parts")
    assert matches(f"field '{VALUE}' must be text", f"{VALUE}: field '{VALUE}' must be text{VALUE}")
    assert not matches("is of kind image_url; only", f"{VALUE}: is of type {VALUE}; only parts")
    assert not matches("holds no text", f"{VALUE}: {VALUE}")


@pytest.mark.parametrize("module", sorted({module for module, _ in refusals()}))
def test_each_refusal_has_an_entry(module):
    messages = [message for name, message in refusals() if name == module]
    missing = [
        message.replace(VALUE, "...")
        for message in messages
        if not any(matches(entry, message) for entry in entries())
    ]
    assert not missing


def test_each_entry_is_of_a_message():
    texts = all_texts()
    stale = []
    for entry in entries():
        longest = max(entry.split(VALUE), key=len)
        runs = {longest[i : i + RUN] for i in range(max(1, len(longest) - RUN + 1))}
        if not any(run in texts for run in runs):
            stale.append(entry)
    assert not stale


def test_no_entry_occurs_twice():
    assert len(set(entries())) == len(entries())
