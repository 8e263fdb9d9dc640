import pytest

from tests.training.factories import make_finished_run
from tests.training.reports import figure, leave, make_curve, make_report
from training import report_queries
from training.plots import Tick
from training.report_queries import Row

pytestmark = pytest.mark.django_db


def report_of(told, **values):
    return report_queries.report(leave(make_finished_run(kind="evaluate", **values), "report.json", told))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def said(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.label, plain(row.text)) for row in rows]


def test_report_says_the_accuracy_beside_what_it_has_to_be_held_against():
    report = report_of(make_report())
    assert said(report.headline) == [
        ("Accuracy", "71.2% [68.2, 74.2]"),
        ("Longer wins", "58.3% [55.3, 61.3]"),
        ("One person against the others", "76.0% [73.0, 79.0]"),
        ("Best possible model", "73.8% to 80.5%"),
        ("Accuracy on those items", "72.0% [69.0, 75.0]"),
    ]
    assert [row.is_band for row in report.headline] == [False, False, False, True, False]
    assert all(row.strip for row in report.headline)
    assert report.ticks == [Tick("1.00%", "50%"), Tick("99.00%", "90%")]
    assert report.basis == (
        "Measured on 812 ordered pairs, 37 tied pairs, 640 rankings, 212 prompts, "
        "4 responses cut to the maximum length."
    )


def test_report_says_all_figures_with_their_meaning():
    report = report_of(make_report())
    assert said(report.more) == [
        ("Accuracy, ties included", "66.0% [63.0, 69.0]"),
        ("Finds the best", "58.0% [55.0, 61.0]"),
        ("Kendall's tau", "0.440 [0.410, 0.470]"),
        ("Log-loss", "0.566 [0.536, 0.596]"),
        ("Brier score", "0.191 [0.161, 0.221]"),
        ("Calibration error", "3.1% [0.1, 6.1]"),
        ("Temperature", "1.21"),
    ]
    assert report.more[5].help.endswith("On so many pairs a perfectly calibrated model would show 2.2%.")


def test_report_says_that_people_are_not_known_to_agree():
    report = report_of(make_report(ceiling=None))
    assert said(report.headline)[2:] == [
        ("Human ceiling", "not known: nowhere did two people judge the same responses")
    ]


def test_report_draws_how_reliable_probabilities_are():
    rows = [
        {"confidence": 0.6, "accuracy": 0.62, "interval": [0.55, 0.69], "num_pairs": 40},
        {"confidence": 0.9, "accuracy": 0.7, "interval": [0.6, 0.8], "num_pairs": 41},
    ]
    report = report_of(make_report(reliability=rows))
    assert report.reliability.about.startswith("Reliability diagram: in 1 of 2 groups of pairs")
    assert len(report.reliability.dots) == 2
    assert report.reliability.lines[0].points == "48.0,226.0 348.0,10.0"
    assert [{**row, "observed": plain(row["observed"])} for row in report.reliability_rows] == [
        {"confidence": "60.0%", "observed": "62.0% [55.0, 69.0]", "num_pairs": "40"},
        {"confidence": "90.0%", "observed": "70.0% [60.0, 80.0]", "num_pairs": "41"},
    ]


def test_report_shows_slices_of_which_there_are_several():
    report = report_of(make_report())
    assert [(table.key, len(table.rows), table.is_open) for table in report.slices] == [
        ("source", 2, True),
        ("annotator", 14, False),
        ("num_responses", 2, True),
        ("strength", 2, True),
        ("length_difference", 2, True),
    ]
    first = report.slices[0].rows[0]
    assert (first.name, plain(first.accuracy), first.num_pairs, first.num_prompts) == (
        "browser",
        "72.0% [67.0, 77.0]",
        700,
        233,
    )
    assert (plain(first.log_loss), plain(first.ece)) == ("0.580 [0.540, 0.620]", "4.0% [2.0, 6.0]")
    assert (plain(first.kendall_tau), plain(first.top_1)) == ("0.440 [0.390, 0.490]", "58.0% [53.0, 63.0]")
    assert [table.is_whole for table in report.slices] == [True] * 4 + [False]


def test_report_says_length_bias_in_plain_words():
    report = report_of(make_report())
    assert [plain(line) for line in report.length] == [
        "Prefers longer responses more than people do (partial correlation of reward and length "
        "+0.120 [+0.090, +0.150]).",
        "Correlation of reward and length among the responses to one prompt: +0.310 [+0.280, +0.340].",
        "Right on 78.0% [75.0, 81.0] of the pairs where people preferred the longer response, and on "
        "61.0% [58.0, 64.0] of those where they preferred the shorter.",
        "Always taking the longer response would be right on 58.3% [55.3, 61.3].",
    ]


@pytest.mark.parametrize(
    ("partial", "verdict"),
    [
        (figure(-0.2), "Prefers shorter responses more than people do"),
        (figure(0.02), "Prefers neither length"),
        ({"value": 0.4, "interval": None}, "Prefers neither length"),
    ],
)
def test_report_claims_no_preference_for_length_that_may_be_chance(partial, verdict):
    assert report_of(make_report(length={"partial_correlation": partial})).length[0].startswith(verdict)


def compared(**values):
    return report_of(make_report(comparison={**make_report()["comparison"], **values})).comparison


def test_report_compares_two_reward_models():
    found = compared()
    assert plain(found.verdict) == (
        "helmsman is better than baseline by 2.1 points [0.4, 3.8] on the same 812 pairs, McNemar p = 0.013."
    )
    assert said([found.first, found.second]) == [
        ("helmsman", "71.2% [68.2, 74.2]"),
        ("baseline", "69.1% [66.1, 72.1]"),
    ]
    assert plain(found.log_loss_gain) == "+0.015 [+0.005, +0.025]"
    assert found.table == {"both": 520, "only_first": 58, "only_second": 41, "neither": 193}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (
            {"accuracy_gain": {"value": -0.021, "interval": [-0.038, -0.004]}, "mcnemar_p": 0.0001},
            "baseline is better than helmsman by 2.1 points [0.4, 3.8] on the same 812 pairs, McNemar p < 0.001.",
        ),
        (
            {"accuracy_gain": {"value": 0.003, "interval": [-0.012, 0.018]}, "mcnemar_p": None},
            "helmsman and baseline cannot be told apart: helmsman leads by 0.3 points [-1.2, 1.8] "
            "on the same 812 pairs.",
        ),
        ({"accuracy_gain": None}, "The accuracy of helmsman and baseline was not compared."),
    ],
)
def test_verdict_is_only_as_sure_as_its_interval(values, verdict):
    assert plain(compared(**values).verdict) == verdict


def test_comparison_names_models_by_the_runs_that_saved_them():
    model = make_finished_run(name="helmsman")
    found = compared(name_first=str(model.model_dir.resolve()), name_second="org/model")
    assert (found.first.label, found.second.label) == (f"helmsman (run {model.pk})", "org/model")


@pytest.mark.parametrize("told", ["", "[]", "{", {}])
def test_no_report_is_no_section(told):
    assert report_of(told) is None
    assert report_queries.report(make_finished_run()) is None


@pytest.mark.parametrize("part", make_report())
def test_report_stands_without_any_of_its_parts(part):
    whole = make_report()
    del whole[part]
    assert report_of(whole)
    assert report_of(make_report(**{part: None}))
    assert report_of({part: make_report()[part]})


def test_report_stands_without_any_figure():
    told = make_report(
        figures=dict.fromkeys(make_report()["figures"]),
        length=dict.fromkeys(make_report()["length"]),
        ceiling=dict.fromkeys(make_report()["ceiling"]),
        comparison=dict.fromkeys(make_report()["comparison"]),
        slices={"source": [{"name": "a", "accuracy": None}, {}]},
        reliability=[{}, {"confidence": None, "accuracy": 0.5}, {"confidence": 0.5, "accuracy": None}],
    )
    report = report_of(told)
    assert [row.text for row in report.headline] == ["not measured"] * 4
    assert (report.reliability, report.length) == (None, [])
    assert report.slices[0].rows[1].name == ""


# Learning curves


def curve_of(told):
    return report_queries.learning_curve(leave(make_finished_run(kind="learning_curve"), "curve.json", told))


def test_learning_curve_is_drawn_over_the_logarithm_of_judgments():
    curve = curve_of(make_curve(num_points=3))
    plot = curve.plot
    assert plot.about == "Accuracy rises from 58.2% at 250 judgments to 64.2% at 1,000."
    assert [line.name for line in plot.lines] == ["guide", "curve"]
    steps = [float(tick.at) for tick in plot.x_ticks]
    assert [tick.text for tick in plot.x_ticks] == ["250", "500", "1,000"]
    assert steps[1] - steps[0] == pytest.approx(steps[2] - steps[1], abs=0.2)
    assert len(plot.dots) == 6
    assert curve.left_out == []
    assert plain(curve.longer_wins) == "58.3% [55.3, 61.3]"
    assert {name: plain(str(value)) for name, value in curve.rows[-1].items()} == {
        "num_judgments": "1000",
        "num_prompts": "400",
        "seed": "1",
        "accuracy": "64.5% [61.5, 67.5]",
        "log_loss": "0.640 [0.610, 0.670]",
    }


def test_learning_curve_that_does_not_rise_is_not_said_to():
    points = [{"num_judgments": size, "num_prompts": size, "accuracy": figure(0.6)} for size in (10, 20)]
    assert curve_of({"points": points}).plot.about == "Accuracy goes from 60.0% at 10 judgments to 60.0% at 20."


def test_learning_curve_joins_the_means_of_as_many_prompts():
    """Each seed draws other prompts, which have other numbers of judgments."""
    sizes = ((10, 22, 0.5), (10, 18, 0.6), (20, 40, 0.7), (20, 40, 0.6))
    points = [
        {"num_prompts": prompts, "num_judgments": judgments, "accuracy": figure(accuracy)}
        for prompts, judgments, accuracy in sizes
    ]
    plot = curve_of({"points": points}).plot
    assert plot.about == "Accuracy rises from 55.0% at 20 judgments to 65.0% at 40."
    assert (len(plot.dots), len(plot.lines[0].points.split()), [tick.text for tick in plot.x_ticks]) == (
        4,
        2,
        ["20", "40"],
    )


@pytest.mark.parametrize("told", ["", {}, {"points": []}, {"points": None}])
def test_no_curve_is_no_section(told):
    assert curve_of(told) is None


def test_learning_curve_stands_without_its_figures():
    curve = curve_of({"points": [{}, {"num_judgments": 0, "accuracy": figure(0.5)}, {"num_judgments": 9}]})
    assert (curve.plot, len(curve.rows), curve.longer_wins) == (None, 3, "not measured")
    assert len(curve_of({"points": [{"num_judgments": 8, "accuracy": figure(0.5)}]}).plot.dots) == 1


# The files as trainers write them


def shape(told):
    """Names and kinds of what a report holds; of a list, of what its first item is."""
    if isinstance(told, dict):
        return {name: shape(value) for name, value in told.items()}
    if isinstance(told, list):
        return [shape(value) for value in told[:1]]
    return "number" if isinstance(told, int | float) else type(told).__name__


def judged(number: int, annotator: str):
    from training.alignment.preferences import RankedResponses  # noqa: PLC0415 -- torch loads with it

    better = number % 3 > 0 if annotator == "amina" else number % 4 > 0
    return RankedResponses(
        prompt=[{"role": "user", "content": f"Question {number}"}],
        responses=("An answer", "A longer answer" if number % 5 else "Short"),
        ranking=((0, 1),) if number == 0 else ((0,), (1,)) if better else ((1,), (0,)),
        annotator=annotator,
        strength=1 + number % 2,
        source="browser",
    )


def test_invented_reports_look_like_those_that_trainers_write():
    from training.alignment import evaluation  # noqa: PLC0415 -- torch loads with it

    rankings = [judged(number, annotator) for number in range(40) for annotator in ("amina", "ben")]
    scores = [[0.1 * (number % 7), 0.3 - 0.05 * (number % 11)] for number in range(len(rankings))]
    other = evaluation.OtherModel("baseline", [[second, first] for first, second in scores])
    told = evaluation.report(rankings, scores, temperature=1.2, name="helmsman", other=other)

    assert shape(told) == shape(make_report())
    page = report_of(told)
    assert [row.strip is not None for row in page.headline] == [True] * 5
    assert "cannot be told apart" in page.comparison.verdict or "is better than" in page.comparison.verdict
