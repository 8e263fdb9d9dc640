import pytest

from training import plots
from training.plots import (
    Axes,
    Dot,
    Line,
    Range,
    Scale,
    Strip,
    Tick,
    scale_around,
    strip,
    strip_ticks,
    tenths,
    thinned,
)


def test_scale_places_values_and_holds_what_lies_outside_at_its_ends():
    scale = Scale(0.5, 0.9)
    assert [scale.share(value) for value in (0.5, 0.7, 0.9, 0.2, 1.0)] == pytest.approx([0, 0.5, 1, 0, 1])
    logarithmic = Scale(10, 1000, is_log=True)
    assert [logarithmic.share(value) for value in (10, 100, 1000)] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize(
    ("ranges", "include", "scale"),
    [
        ([], (0.5,), Scale(0.5, 0.6)),
        ([Range(0.712, 0.64, 0.781)], (0.5,), Scale(0.5, 0.8)),
        ([Range(0.45)], (0.5,), Scale(0.4, 0.5)),
        ([Range(0.3, 0.29, 0.31)], (0.5,), Scale(0.2, 0.5)),
        ([Range(1.0)], (1.0,), Scale(0.9, 1.0)),
        ([Range(0.0, -0.1, 1.2)], (0.5,), Scale(0.0, 1.0)),
    ],
)
def test_scale_around_holds_everything_between_whole_tenths(ranges, include, scale):
    assert scale_around(ranges, include=include) == scale


def test_strip_stands_in_per_cent_of_its_cell():
    scale = Scale(0.5, 1.0)
    assert strip(Range(0.75, 0.6, 0.9), scale) == Strip("50.00%", "20.60%", "79.40%", "1.00%")
    assert strip(Range(0.75), scale) == Strip("50.00%", "50.00%", "50.00%", "1.00%")
    assert strip_ticks(Scale(0.4, 0.9)) == [Tick("1.00%", "40%"), Tick("20.60%", "50%"), Tick("99.00%", "90%")]
    assert strip_ticks(scale) == [Tick("1.00%", "50%"), Tick("99.00%", "100%")]


def test_plot_places_dots_lines_and_ticks():
    axes = Axes(Scale(0, 1), Scale(0.5, 0.7))
    plot = axes.plot(
        [(0.5, Range(0.6, 0.5, 0.7)), (1, Range(0.7))],
        about="About",
        x_label="X",
        y_label="Y",
        x_ticks=[(0, "none")],
        lines=[("guide", [(0, 0.5), (1, 0.7)])],
    )
    # x runs from 48 to 348, y from 226 upwards to 10
    assert plot.dots == [Dot("198.0", "118.0", "226.0", "10.0"), Dot("348.0", "10.0", "10.0", "10.0")]
    assert plot.lines == [Line("48.0,226.0 348.0,10.0", "guide")]
    assert plot.x_ticks == [Tick("48.0", "none")]
    assert plot.y_ticks == [Tick("226.0", "50%"), Tick("118.0", "60%"), Tick("10.0", "70%")]


def test_ticks_leave_room_for_each_other():
    assert tenths(Scale(0.5, 0.8)) == [0.5, 0.6, 0.7, 0.8]
    assert tenths(Scale(0.0, 1.0)) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert thinned([1, 2, 4]) == [1, 2, 4]
    assert thinned([1, 2, 4, 8, 16, 32, 64, 128]) == [2, 8, 32, 128]


def test_axis_of_gains_has_nothing_in_its_middle():
    scale = plots.scale_of_gains([Range(0.02, -0.01, 0.05), Range(-0.02)])
    assert scale == Scale(-0.05, 0.05)
    assert plots.gain_ticks(scale, in_points=True) == [
        Tick("1.00%", "-5.0"),
        Tick("50.00%", "0"),
        Tick("99.00%", "+5.0"),
    ]
    assert plots.scale_of_gains([]) == plots.scale_of_gains([Range(0.0, -0.0002, 0.0)]) == Scale(-0.001, 0.001)


def test_axis_of_losses_names_a_coin_and_the_ends_that_are_far_from_it():
    assert [tick.text for tick in plots.loss_ticks(Scale(0.3, 1.1), 0.69)] == ["0.3", "coin", "1.1"]
    assert [tick.text for tick in plots.loss_ticks(Scale(0.3, 0.7), 0.69)] == ["0.3", "coin"]
    assert [tick.text for tick in plots.loss_ticks(Scale(0.6, 1.1), 0.69)] == ["coin", "1.1"]
