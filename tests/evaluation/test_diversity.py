"""Diversity figures against values worked out by hand and against the definitions."""

import math

import numpy as np
import pytest

from twcli.evaluation import diversity


def test_distinct_n():
    texts = ["a b a b", "a b!"]
    assert diversity.distinct_n(texts, 1) == 3 / 7
    assert diversity.distinct_n(texts, 2) == 3 / 5  # ab, ba, b!
    assert math.isnan(diversity.distinct_n(["", "a"], 2))
    assert diversity.distinct_n(["été ☃", "été ☃"], 1) == 0.5


def test_the_vendi_score_counts_what_differs():
    alike = np.ones((5, 3))
    assert diversity.vendi_score(alike) == pytest.approx(1)
    assert diversity.vendi_score(np.eye(4)) == pytest.approx(4)
    groups = np.repeat(np.eye(3), [4, 2, 2], axis=0)
    shares = np.array([0.5, 0.25, 0.25])
    assert diversity.vendi_score(groups * 7) == pytest.approx(
        math.exp(-(shares * np.log(shares)).sum())
    )
    assert diversity.vendi_score(np.zeros((3, 2))) == pytest.approx(3)


def test_self_bleu():
    same = ["the cat sat on the mat today"] * 3
    assert diversity.self_bleu([same, same]) == pytest.approx(100)
    other = ["one two three four five", "six seven eight nine ten"]
    assert diversity.self_bleu([other]) == pytest.approx(0, abs=1e-6)
    assert 0 < diversity.self_bleu([same, other]) < 100
    assert diversity.self_bleu([["alone"]]) is None and diversity.self_bleu([]) is None


def test_reference_bleu_leaves_one_out_on_both_sides():
    references = ["a b c d e f", "g h i j k l", "a b c d e f"]
    ours, theirs = diversity.reference_bleu([["a b c d e f"]], [references])
    # against either of two different references alone: right once, wrong once
    assert ours == pytest.approx(50, abs=1e-3)
    assert theirs == pytest.approx(0, abs=1e-3)
    several = [["m n o p q", "m n o p q r"], references]
    both = diversity.reference_bleu([["m n o p q"], ["x y z"]], several)
    assert both is not None and 0 < both[0] < 100
    assert diversity.reference_bleu([["a"]], [["b", "b"]]) is None


def test_information_of_latents_read_back():
    assert diversity.information(np.eye(4) * 5) == pytest.approx(math.log(4))
    assert diversity.information(np.ones((4, 4))) == pytest.approx(0)
    assert diversity.information(np.zeros((2, 2))) is None
