import time

from twcli.pages.differences import marked


def shown(texts):
    """Marked words in brackets."""
    return ["".join(f"[{t}]" if flag else t for t, flag in pieces) for pieces in marked(texts)]


def test_words_that_no_other_text_has_there():
    assert shown(["Step 1: add 2", "Step 1: take 2"]) == ["Step 1: [add] 2", "Step 1: [take] 2"]


def test_neighbours_that_are_marked_are_marked_together():
    assert shown(["so we add both now", "so you keep them now"]) == [
        "so [we add both] now",
        "so [you keep them] now",
    ]


def test_order_is_a_difference():
    assert shown(["1 2 3", "3 2 1"]) == ["[1 2 3]", "[3 2 1]"]


def test_a_text_that_another_one_equals_has_no_mark():
    assert shown(["a b", "a b", "a c"]) == ["a b", "a b", "a [c]"]


def test_nothing_is_lost():
    texts = ["", " \n", "x", "日本語 テスト\n\n- a", "a\u200db é", "((", "a" * 5000]
    assert ["".join(t for t, _ in pieces) for pieces in marked(texts)] == texts


def test_many_long_texts_take_no_time():
    texts = [" ".join(str(i * k) for i in range(2000)) for k in range(1, 33)]
    began = time.process_time()
    marked(texts)
    assert time.process_time() - began < 5
