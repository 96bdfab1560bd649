import math

import pytest

from twcli.pages.charts import Line, bands, bars, curves, scatter


def percent(text):
    return float(text.removesuffix("%"))


def places(path):
    return [tuple(map(float, pair.split(","))) for pair in path.split(" ")]


def test_a_curve_is_where_its_axes_say():
    chart = curves("I", [Line("a", [(0, 0.0), (50, 0.5), (100, 1.0)])], unit="nats", top=2.0)
    path = places(chart["lines"][0]["path"])
    assert [x for x, _ in path] == [0, 50, 100]
    ticks = {tick["label"]: percent(tick["at"]) for tick in chart["y_ticks"]}
    assert path[0][1] == ticks["0"] == 100 and path[2][1] == pytest.approx(ticks["1"], abs=0.01)
    assert path[1][1] == pytest.approx((ticks["0"] + ticks["1"]) / 2, abs=0.01)
    assert [tick["label"] for tick in chart["x_ticks"]] == ["0", "20", "40", "60", "80", "100"]


def test_next_to_nothing_looks_like_it():
    """The axis reaches what is possible, whatever the largest value is."""
    chart = curves("I", [Line("a", [(1, 0.0), (9, 0.00132)])], unit="nats", top=math.log(4))
    assert all(y > 99 for _, y in places(chart["lines"][0]["path"]))


def test_a_logarithmic_scale():
    line = Line("loss", [(1, 100.0), (2, 10.0), (3, 1.0), (4, 0.0)])
    chart = curves("loss", [line], unit="nats", log=True)
    (_, first), (_, second), (_, third) = places(chart["lines"][0]["path"])
    assert first - second == pytest.approx(second - third, abs=0.02)
    assert [tick["label"] for tick in chart["y_ticks"]] == ["1", "10", "100"]
    assert curves("loss", [Line("a", [(1, 0.0)])], unit="nats", log=True) is None


def test_a_reference_and_negative_values():
    line = Line("z0", [(1, -8.0), (2, 0.5)], latent=9)
    chart = curves("gain", [line], unit="nats", reference=(0.0, "original model"))
    at = percent(chart["reference"]["at"])
    (_, low), (_, high) = places(chart["lines"][0]["path"])
    assert high < at < low < 100
    assert chart["lines"][0]["style"] == "c1" and chart["lines"][0]["cased"]


def test_a_band_goes_there_and_back():
    line = Line("a", [(1, 0.5), (4, 1.0)], [(1, 0.4, 0.6), (4, 0.9, 1.1)])
    chart = curves("pass@k", [line], unit="share", axis="k", log_axis=True)
    assert [x for x, _ in places(chart["lines"][0]["band"])] == [0, 100, 100, 0]
    assert [tick["label"] for tick in chart["x_ticks"]] == ["1", "4"]


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, 3.0), (2, 3.0)], [(5, -1.0)]])
def test_a_flat_or_single_value_is_drawn(points):
    chart = curves("x", [Line("a", points)], unit="nats")
    values = [value for pair in places(chart["lines"][0]["path"]) for value in pair]
    assert all(0 <= value <= 100 for value in values) and chart["y_ticks"]
    assert len(set(places(chart["lines"][0]["path"]))) > 1  # a path of one point shows nothing
    assert curves("x", [], unit="nats") is None


def test_who_does_not_see_it_has_a_description():
    line = Line("a", [(1, 0.25), (2000, 0.5)])
    chart = curves("Loss", [line], unit="nats", stages=[(1, "hold"), (700, "refine")])
    assert chart["description"] == (
        "Loss in nats: a from 0.25 at step 1 to 0.5 at 2,000; hold begins at step 1; "
        "refine begins at step 700"
    )


def test_bands_fill_the_whole():
    chart = bands("usage", [(1, [0.5, 0.5]), (3, [0.1, 0.9])])
    lower, upper = (places(band["path"]) for band in chart["bands"])
    assert lower == [(0, 50), (100, 90), (100, 100), (0, 100)]
    assert upper == [(0, 0), (100, 0), (100, 90), (0, 50)]
    assert chart["description"] == "usage: at step 3 z0 10%, z1 90%"


def test_bars_of_nothing():
    assert bars([])["bars"] == []
    assert bars([0.0, 0.0])["bars"][1]["width"] == "0.00%"


def test_the_map_has_one_unit_for_both_axes():
    groups = scatter({"points": [[0.0, 0.0, 0], [2.0, 0.0, 1], [0.0, 1.0, 2]]})["groups"]
    (x0, y0), (x1, _), (_, y2) = (group["centre"] for group in groups)
    assert (x1 - x0) * 1.5 == pytest.approx(2 * (y0 - y2), abs=0.1)
    assert all(0 <= value <= 100 for group in groups for value in group["centre"])
    assert scatter(None) is scatter({"points": []}) is None
