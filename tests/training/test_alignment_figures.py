import pytest

from training.alignment_figures import SMALL, Canvas, Curve, Drawn, Mark, Place, Point, scale_of, ticks
from training.plots import Range, Scale, Tick

TENS = Canvas(SMALL, Scale(0, 10), Scale(0, 1))  # 192 wide from 38 on, 94 high from 108 up


def draw(curves, **values):
    return TENS.chart(curves, about="", **values)


def test_chart_places_a_curve_with_its_band():
    points = [Point(0, Range(0.0)), Point(5, Range(0.5, 0.25, 1.0), "five"), Point(10, Range(1.0))]
    chart = draw([Curve("held_out", points)])
    assert chart.curves == [
        Drawn(
            "held_out",
            line="38.0,108.0 134.0,61.0 230.0,14.0",
            band="38.0,108.0 134.0,84.5 230.0,14.0 230.0,14.0 134.0,14.0 38.0,108.0",
            dots=[Place("38.0", "108.0"), Place("134.0", "61.0", "five"), Place("230.0", "14.0")],
            bars=[],
        )
    ]
    assert (chart.box, chart.left, chart.right, chart.top, chart.bottom) == ("0 0 240 130", "38", "230", "14", "108")
    assert chart.x_ticks[0] == Tick("38.0", "0")


def test_a_curve_without_intervals_or_with_one_point_has_no_band():
    bare = Curve("reward", [Point(0, Range(0.0)), Point(5, Range(0.5))])
    single = Curve("reward", [Point(0, Range(0.5, 0.4, 0.6))])
    assert [curve.band for curve in draw([bare, single]).curves] == ["", ""]


def test_scattered_points_have_upright_intervals():
    points = [Point(0, Range(0.5, 0.25, 1.0), "one"), Point(5, Range(0.5))]
    assert draw([Curve("held_out", points, is_scattered=True)]).curves == [
        Drawn(
            "held_out",
            line="",
            band="",
            dots=[Place("38.0", "61.0", "one"), Place("134.0", "61.0")],
            bars=["38.0,84.5 38.0,14.0"],
        )
    ]


def test_a_curve_that_goes_back_has_bars_instead_of_a_band():
    points = [Point(0, Range(0.5)), Point(10, Range(0.5, 0.25, 1.0)), Point(5, Range(0.5, 0.0, 1.0))]
    (curve,) = draw([Curve("held_out", points)]).curves
    assert (curve.band, curve.bars) == ("", ["230.0,84.5 230.0,14.0", "134.0,108.0 134.0,14.0"])
    assert curve.line == "38.0,61.0 230.0,61.0 134.0,61.0"


def test_labels_give_way_to_those_before_them_and_rings_do_not():
    marks = [Mark(5, 0.5, "60 best", is_ringed=True), Mark(5.2, 0.5, "80", is_ringed=True), Mark(0, 0.5, "0")]
    chart = draw([], marks=marks)
    assert chart.labels == [Place("134.0", "76.0", "60 best"), Place("40.5", "76.0", "0")]
    assert chart.rings == [Place("134.0", "61.0"), Place("137.8", "61.0")]


def test_labels_do_not_leave_the_axes():
    labels = draw([], marks=[Mark(0, 0.5, "n = 1"), Mark(10, 0.5, "n = 16")]).labels
    assert [label.x for label in labels] == ["50.5", "215.0"]


def test_labels_stand_above_where_the_axis_is_near():
    assert draw([], marks=[Mark(5, 0.0, "low")]).labels == [Place("134.0", "99.0", "low")]


def test_lines_across_stand_at_their_values():
    chart = draw([], levels=[(0.5, "target")], uprights=[(10, "alarm")])
    assert (chart.levels, chart.uprights) == ([Place("38.0", "61.0", "target")], [Place("230.0", "14.0", "alarm")])


@pytest.mark.parametrize(
    ("scale", "texts"),
    [
        (Scale(0, 3.2), ["0", "1", "2", "3"]),
        (Scale(-0.7, 1.4), ["-0.5", "0.0", "0.5", "1.0"]),
        (Scale(0.001, 0.0023), ["0.0010", "0.0015", "0.0020"]),
        (Scale(0, 400), ["0", "100", "200", "300", "400"]),
        (Scale(1e5, 3e6), ["1e+06", "2e+06", "3e+06"]),
        (Scale(0, 1e-7), ["0", "2e-08", "4e-08", "6e-08", "8e-08", "1e-07"]),
    ],
)
def test_ticks_are_a_few_round_numbers(scale, texts):
    assert [text for _, text in ticks(scale)] == texts


def test_ticks_of_counts_are_whole():
    assert [text for _, text in ticks(Scale(0, 2.1), least=1.0)] == ["0", "1", "2"]
    assert [text for _, text in ticks(Scale(0, 42), least=1.0)] == ["0", "10", "20", "30", "40"]


def test_ticks_of_shares_are_in_per_cent():
    assert [text for _, text in ticks(Scale(0.02, 0.05), is_share=True)] == ["2%", "3%", "4%", "5%"]
    assert [text for _, text in ticks(Scale(0.021, 0.024), is_share=True)] == ["2.1%", "2.2%", "2.3%", "2.4%"]


@pytest.mark.parametrize(
    ("values", "options", "scale"),
    [
        ([], {}, Scale(-0.05, 1.05)),
        ([0, 2], {}, Scale(-0.1, 2.1)),
        ([0, 2], {"is_padded": False}, Scale(0, 2.1)),
        ([1, 2], {"include": (0.0,), "is_padded": False}, Scale(0.0, 2.1)),
        ([3, 3], {}, Scale(2.85, 3.15)),
        ([0], {"is_padded": False}, Scale(0, 0.05)),
        ([1e9, 1e9 + 1], {}, Scale(1e9 - (1e9 + 1) / 20, 1e9 + 1 + (1e9 + 1) / 20)),
    ],
)
def test_scale_holds_its_values_and_is_never_a_point(values, options, scale):
    found = scale_of(values, **options)
    assert (found.low, found.high) == pytest.approx((scale.low, scale.high))
