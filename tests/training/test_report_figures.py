import pytest

from training.plots import Range, Scale, Strip
from training.report_figures import NOT_MEASURED, Row, figure, number, points, read_json, share, share_row


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"value": 0.712, "interval": [0.64, 0.781]}, Range(0.712, 0.64, 0.781)),
        ({"value": 1, "interval": None}, Range(1)),
        ({"value": 0.5}, Range(0.5)),
        ({"value": 0.5, "interval": [0.4, float("nan")]}, Range(0.5)),
        ({"value": 0.5, "interval": [0.4]}, Range(0.5)),
        ({"value": None, "interval": [0.4, 0.6]}, None),
        ({"value": float("nan")}, None),
        ({"value": "0.5"}, None),
        ({}, None),
        (None, None),
        (0.5, None),
    ],
)
def test_figure_takes_what_there_is(told, found):
    assert figure(told) == found


def test_figures_are_told_with_their_intervals_in_brackets():
    told = Range(0.712, 0.64, 0.7814)
    assert share(told) == "71.2% [64.0,\u00a078.1]"
    assert number(told) == "0.712 [0.640,\u00a00.781]"
    assert number(Range(-0.1, -0.2, 0.05), "+") == "-0.100 [-0.200,\u00a0+0.050]"
    assert points(Range(0.021, 0.004, 0.038)) == "2.1 points [0.4,\u00a03.8]"
    assert (share(Range(0.5)), number(Range(0.5)), points(Range(0.5))) == ("50.0%", "0.500", "50.0 points")
    assert (share(None), number(None)) == (NOT_MEASURED, NOT_MEASURED)


def test_share_row_has_a_strip_where_there_is_a_figure():
    scale = Scale(0.5, 1.0)
    assert share_row("Accuracy", None, "help", scale) == Row("Accuracy", NOT_MEASURED, "help", None)
    told = {"value": 0.75, "interval": [0.5, 1.0]}
    strip = Strip(at="50.00%", low="1.00%", high="99.00%", chance="1.00%")
    assert share_row("Accuracy", told, "help", scale) == Row("Accuracy", "75.0% [50.0,\u00a0100.0]", "help", strip)


@pytest.mark.parametrize("text", [None, "", '{"figures": ', "[1]", "null", "\x00"])
def test_read_json_makes_nothing_of_what_is_no_object(tmp_path, text):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    assert read_json(path) == {}
    path.write_text('{"num_pairs": 3}')
    assert read_json(path) == {"num_pairs": 3}
