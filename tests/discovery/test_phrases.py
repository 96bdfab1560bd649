"""Distinctive phrases on texts where the right answer is known, and the most typical rows."""

import math
import random
import time

import numpy as np
import pytest

from twcli.discovery.phrases import MIN_Z, distinctive_phrases, typical_rows

FILLER = ["red", "green", "blue", "apple", "pear", "plum", "train", "house", "river", "cloud"]


def filler(generator, words=6):
    return " ".join(generator.choices(FILLER, k=words))


def texts_of(makers, rows_each, seed=0):
    """Texts of each maker in turn, and which maker made them."""
    generator = random.Random(seed)
    latents = [k for _ in range(rows_each) for k in range(len(makers))]
    return [makers[k](generator) for k in latents], np.array(latents)


def shown(phrases):
    return [phrase.text for phrase in phrases]


def test_planted_phrases_are_found_for_their_latent():
    makers = [
        lambda g: f"First we add {filler(g)}",
        lambda g: f"Working backwards from {filler(g)}",
        lambda g: f"{filler(g)} by symmetry {filler(g)}",
    ]
    found = distinctive_phrases(*texts_of(makers, 40), 3)
    assert shown(found[0])[0] == "^ first we" and "we add" in shown(found[0])
    assert shown(found[1])[0] == "^ working backwards"
    assert shown(found[2]) == ["by symmetry"]
    best = found[2][0]
    assert (best.count, best.share, best.elsewhere) == (40, 1.0, 0.0) and best.z > 5


def test_z_is_the_log_odds_ratio_over_its_standard_error():
    """By hand: `x` in 8 of 10 and 2 of 30, so that the pooled counts are 10 of 40."""
    texts = ["x"] * 8 + ["n"] * 2 + ["x"] * 2 + ["n"] * 28
    latent_N = np.array([0] * 10 + [1] * 30)
    (found,) = [p for p in distinctive_phrases(texts, latent_N, 2)[0] if "x" in p.text]
    ratio = math.log(18 / 32) - math.log(12 / 58)
    assert found.z == pytest.approx(ratio / math.sqrt(1 / 18 + 1 / 32 + 1 / 12 + 1 / 58))
    assert (found.text, found.count) == ("^ x", 8)
    assert (found.share, found.elsewhere) == (0.8, pytest.approx(2 / 30))


def test_a_phrase_counts_once_a_completion():
    texts = ["so so so so so so so so so so"] * 3 + ["yes"] * 27 + ["so"] * 20 + ["yes"] * 10
    found = distinctive_phrases(texts, np.array([0] * 30 + [1] * 30), 2)
    assert any("so" in text for text in shown(found[1]))
    assert not any(p.text == "so" for p in found[0])


def test_numbers_are_one_symbol():
    makers = [
        lambda g: f"take {g.randint(1, 999)} apples",
        lambda g: f"share {g.random():.3f} pears",
    ]
    found = distinctive_phrases(*texts_of(makers, 30), 2)
    assert shown(found[0]) == ["^ take #", "# apples"]
    assert not any(character.isdigit() for p in found[0] + found[1] for character in p.text)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("1. {}\n2. {}\n3. {}", "⏎ 1."),
        ("1) {}\n2) {}", "⏎ 1)"),
        ("- {}\n- {}", "⏎ - "),
        ("# {}\n\n### {}", "⏎ ## "),
        ("{}? {}", "?"),
        ("{}\n{}", "⏎"),
        ("{} **", "**"),
        ("{} -> {}", "->"),
    ],
)
def test_form_counts(template, expected):
    makers = [
        lambda g: template.format(*(filler(g, 4) for _ in range(template.count("{}")))),
        lambda g: filler(g, 12),
    ]
    found = distinctive_phrases(*texts_of(makers, 40), 2)
    assert expected in shown(found[0])


def test_one_stretch_of_text_is_shown_once():
    makers = [
        lambda g: f"{filler(g)} without any doubt {filler(g)}",
        lambda g: filler(g, 12),
    ]
    assert shown(distinctive_phrases(*texts_of(makers, 60), 2)[0]) == ["without any doubt"]


def test_what_follows_a_strong_phrase_is_not_shown_with_it():
    makers = [lambda g: f"{filler(g)} hence {filler(g)}", lambda g: filler(g, 12)]
    assert shown(distinctive_phrases(*texts_of(makers, 300), 2)[0]) == ["hence"]


def test_chance_shows_next_to_nothing():
    texts, latent_N = texts_of([lambda g: filler(g, 12)] * 4, 200)
    found = distinctive_phrases(texts, latent_N, 4)
    assert sum(map(len, found)) <= 4
    assert all(p.z >= MIN_Z for phrases in found for p in phrases)


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ("我们先计算总数", "因为对称", "^ 我们 | 们先计 | 计算总 | 总数"),  # Han: characters
        ("まず合計します", "対称なので", "^ まず | ず合計 | 計しま | ます"),  # kana
        ("ด้วย", "สมมาตร", "^ ด้ว | วย"),  # Thai: marks stay with their letter
        ("पहले हम हैं", "उत्तर समान है", "^ पहले हम | हम हैं"),  # vowel signs stay within words
        ("أولا نجمع", "الجواب متماثل", "^ أولا نجمع"),
        ("Сначала сложим", "ответ очевиден", "^ сначала сложим"),
        ("먼저 수를", "답은 대칭입니다", "^ 먼저 수를"),
        ("İlk önce", "cevap", "^ i̇lk önce"),
        ("🙂 fine", "🙁 bad", "^ 🙂 fine"),
        ("e\u0301te\u0301", "été chaud", None),  # the same word, composed and not
    ],
)
def test_any_script(one, two, expected):
    latent_N = np.array([0, 1] * 20)
    found = distinctive_phrases([one, two] * 20, latent_N, 2, top=20)
    if expected is None:
        assert not found[0] and shown(found[1]) == ["^ été chaud"]
    else:
        assert " | ".join(shown(found[0])) == expected


@pytest.mark.parametrize(
    ("texts", "latents_of_rows"),
    [
        ([], []),
        (["one text"], [0]),
        (["one text"], [-1]),
        (["a b c", "d e f"], [0, 1]),
        (["same"] * 30, [0, 1] * 15),
        (["", " \n ", "\u200b", "\0"] * 5, [0, 1, 2, 0] * 5),
        (["only one latent"] * 20, [1] * 20),
    ],
)
def test_where_nothing_is_typical_there_are_no_phrases(texts, latents_of_rows):
    found = distinctive_phrases(texts, np.array(latents_of_rows, np.int64), 3)
    assert found == [[], [], []]


def test_empty_latents_and_rows_without_a_latent():
    texts, latent_N = texts_of(
        [lambda g: f"hence {filler(g)}", lambda g: filler(g), lambda g: f"hence {filler(g)}"], 30
    )
    latent_N = np.where(latent_N == 2, -1, latent_N * 3)  # 0 and 3 are in use
    found = distinctive_phrases(texts, latent_N, 5)
    assert shown(found[0]) == ["^ hence"] and found[0][0].elsewhere == 0
    assert [len(phrases) > 0 for phrases in found[1:]] == [False, False, False, False]


def test_top_and_order():
    generator = random.Random(1)
    words = [f"only{chr(97 + i)}" for i in range(12)]
    texts = [" red ".join(generator.sample(words, 12)) for _ in range(40)] + ["red"] * 40
    found = distinctive_phrases(texts, np.repeat([0, 1], 40), 2, top=5)
    assert len(found[0]) == 5
    assert [p.z for p in found[0]] == sorted((p.z for p in found[0]), reverse=True)


def test_the_order_of_the_rows_does_not_matter_and_two_calls_agree():
    makers = [lambda g: f"hence {filler(g)}", lambda g: f"{filler(g)} so"]
    texts, latent_N = texts_of(makers, 50)
    once = distinctive_phrases(texts, latent_N, 2)
    assert once == distinctive_phrases(texts, latent_N, 2)
    back = distinctive_phrases(texts[::-1], latent_N[::-1], 2)
    assert [sorted(shown(p)) for p in back] == [sorted(shown(p)) for p in once]


def test_broken_texts_do_no_harm():
    odd = ["\ud800 hence", "a\u202eb hence", "[^]-\\ hence", "\x1b[31m hence", "ै hence"] * 8
    found = distinctive_phrases(odd + ["plain"] * 40, np.repeat([0, 1], 40), 2)
    assert "hence" in " ".join(shown(found[0]))
    for phrase in found[0]:
        phrase.text.encode()
        assert phrase.text.isprintable()


def test_long_texts_are_cut():
    long = "word " * 200_000
    started = time.process_time()
    distinctive_phrases([long, "short"] * 20, np.array([0, 1] * 20), 2)
    assert time.process_time() - started < 1


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="2 texts and 1"):
        distinctive_phrases(["a", "b"], np.array([0]), 2)
    with pytest.raises(ValueError, match="latent 2 of 2"):
        distinctive_phrases(["a"], np.array([2]), 2)


def test_typical_rows():
    probability_N = np.array([0.9, 0.9, 1.0, 0.5, 0.9, 0.7])
    latent_N = np.array([0, 0, 0, 1, 0, -1])
    distance_N = np.array([3.0, 1.0, 9.0, 0.0, 1.0, 0.0])
    rows = typical_rows(probability_N, latent_N, distance_N, 3, 3)
    assert [found.tolist() for found in rows] == [[2, 1, 4], [3], []]
    rows = typical_rows(probability_N, latent_N, None, 3, 3)
    assert [found.tolist() for found in rows] == [[2, 0, 1], [3], []]
    assert all(not len(found) for found in typical_rows(probability_N, latent_N, None, 3, 0))


def test_typical_rows_agree_with_sorting_all():
    generator = np.random.default_rng(0)
    probability_N = generator.integers(0, 5, 500) / 4
    probability_N[::50] = np.nan
    latent_N = generator.integers(-1, 4, 500)
    distance_N = generator.integers(0, 3, 500).astype(float)
    found = typical_rows(probability_N, latent_N, distance_N, 4, 20)
    for k in range(4):
        rows = sorted(
            np.flatnonzero(latent_N == k),
            key=lambda row: (-np.nan_to_num(probability_N[row], nan=-1), distance_N[row], row),
        )
        assert found[k].tolist() == rows[:20]
