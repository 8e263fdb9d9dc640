import json

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from annotate.models import OPEN, Comparison
from tests.factories import make_comparison, make_judgment, make_project, make_prompt, response_ids
from tests.training.factories import make_finished_run, make_staff
from tests.training.reports import figure, gains, leave, make_combination
from tests.training.test_admin import inline, make_viewer, run_url
from training import combination_queries, guidance
from training.alignment.config import CombineConfig
from training.combination_queries import Bar, Cell, Named, Opinion
from training.plots import Range, Tick

pytestmark = pytest.mark.django_db
ONE, TWO, THREE = Named("hub/backbone-one"), Named("hub/backbone-two"), Named("rules/length")


def combined(told, **values):
    return leave(make_finished_run(kind="combine", **values), "report.json", told)


def combination_of(told, **values):
    return combination_queries.combination(combined(told, **values))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(make_staff(username="staff"))
    return client


# What each is worth


def test_members_and_combiners_are_told_on_the_same_pairs():
    found = combination_of(make_combination())
    assert found.basis == (
        "Measured on 812 ordered pairs, 640 rankings, 212 prompts; fitted on 320 rankings, 106 prompts. "
        "17 rankings were left out: a member was trained on their prompts."
    )
    told = {
        title: [
            (one.name.text, plain(one.accuracy.text), plain(one.log_loss.text), one.is_chosen, one.problem)
            for one in rows
        ]
        for title, rows in found.scored
    }
    assert told == {
        "Members": [
            ("hub/backbone-one", "71.2% [68.2, 74.2]", "0.566 [0.546, 0.586]", False, ""),
            ("hub/backbone-two", "70.1% [67.1, 73.1]", "0.588 [0.568, 0.608]", False, ""),
            ("rules/length", "41.0% [38.0, 44.0]", "0.710 [0.690, 0.730]", False, "flipped"),
        ],
        "Combined": [
            ("Mean", "72.2% [69.2, 75.2]", "0.561 [0.541, 0.581]", False, ""),
            ("Worst case", "68.2% [65.2, 71.2]", "0.586 [0.566, 0.606]", False, ""),
            ("Bayesian averaging", "71.2% [68.2, 74.2]", "0.566 [0.546, 0.586]", False, ""),
            ("Stacking", "74.2% [71.2, 77.2]", "0.546 [0.526, 0.566]", False, ""),
            ("Fusion network", "75.2% [72.2, 78.2]", "0.536 [0.516, 0.556]", True, ""),
        ],
    }
    assert all(one.accuracy.strip and one.log_loss.strip for _, rows in found.scored for one in rows)
    assert found.accuracy_ticks == [Tick("1.00%", "30%"), Tick("40.20%", "50%"), Tick("99.00%", "80%")]
    assert found.log_loss_ticks == [Tick("1.00%", "0.5"), Tick("64.09%", "coin"), Tick("99.00%", "0.8")]


def test_basis_says_that_judgments_were_few():
    assert combination_of(make_combination(cross_fitted=5, num_left_out=0)).basis.endswith(
        "106 prompts, crosswise in 5 folds: each prompt by what was fitted on others."
    )


def test_warnings_name_broken_members_and_what_a_method_says_of_itself():
    assert combination_of(make_combination()).warnings == [
        "rules/length is left out. It agrees with people less often than a coin: its sign seems to be the wrong way "
        "round.",
        "Bayesian averaging: It trusts one member.",
    ]


def test_members_are_named_by_the_runs_that_saved_them():
    model = make_finished_run(name="helmsman")
    path = str(model.model_dir.resolve())
    told = make_combination()
    told["members"][0] |= {"name": path, "path": path}
    told["leave_one_out"][0]["name"] = path

    found = combination_of(told)

    named = Named(f"helmsman (run {model.pk})", model.pk)
    assert found.scored[0][1][0].name == found.correlation.names[0] == found.gains[2].rows[0].name == named


# Gains


def test_gains_are_told_with_intervals_and_a_verdict():
    tables = {table.key: table for table in combination_of(make_combination()).gains}
    assert list(tables) == ["best", "mean", "adds"]
    told = {
        key: [
            (row.name.text, plain(row.accuracy.text), plain(row.log_loss.text), row.p, row.verdict)
            for row in table.rows
        ]
        for key, table in tables.items()
    }
    assert told["best"] == [
        ("Mean", "+1.0 points [-1.0, +3.0]", "+0.005 [-0.005, +0.015]", "0.013", "no difference that shows"),
        ("Worst case", "-3.0 points [-5.0, -1.0]", "-0.020 [-0.030, -0.010]", "0.013", "worse"),
        (
            "Bayesian averaging",
            "+0.0 points [-2.0, +2.0]",
            "+0.000 [-0.010, +0.010]",
            "1.000",
            "no difference that shows",
        ),
        ("Stacking", "+3.0 points [+1.0, +5.0]", "+0.020 [+0.010, +0.030]", "0.013", "better"),
        ("Fusion network", "+4.0 points [+2.0, +6.0]", "+0.030 [+0.020, +0.040]", "0.013", "better"),
    ]
    assert [row[0] for row in told["mean"]] == ["Worst case", "Bayesian averaging", "Stacking", "Fusion network"]
    assert [(row[0], row[4]) for row in told["adds"]] == [
        ("hub/backbone-one", "helps"),
        ("hub/backbone-two", "no difference that shows"),
    ]
    assert tables["best"].about == "The best one by log-loss is hub/backbone-one."
    assert [tick.text for tick in tables["best"].accuracy_ticks] == ["-6.0", "0", "+6.0"]
    assert [tick.text for tick in tables["best"].log_loss_ticks] == ["-0.040", "0", "+0.040"]
    assert [row.is_chosen for row in tables["best"].rows] == [False, False, False, False, True]
    strip = tables["best"].rows[0].accuracy.strip
    assert (strip.chance, strip.at) == ("50.00%", "58.17%")


def test_a_reward_model_in_use_is_compared_with():
    told = make_combination(against_incumbent={"name": "hub/in-use", **gains(0.03, 0.0, mcnemar_p=0.0001)})
    table = next(table for table in combination_of(told).gains if table.key == "incumbent")
    assert [(row.name.text, row.p, row.verdict) for row in table.rows] == [
        ("Fusion network against hub/in-use", "< 0.001", "better")
    ]


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ([Range(0.1, 0.01, 0.2), Range(0.1, -0.1, 0.2)], "better"),
        ([Range(0.1, 0.01, 0.2), Range(-0.1, -0.2, -0.01)], "better by one measure, worse by the other"),
        ([Range(-0.1, -0.2, -0.01), Range(0.1, 0.0, 0.2)], "worse"),
        ([Range(0.1, 0.0, 0.2)], "no difference that shows"),
        ([Range(0.1)], "no difference that shows"),
        ([], "not compared"),
    ],
)
def test_verdict_is_only_as_sure_as_its_intervals(ranges, said):
    assert combination_queries.verdict(ranges) == said


def test_every_way_of_combining_has_a_name():
    ways = {*CombineConfig.__dataclass_fields__["method"].metadata["choices"]}
    assert ways == combination_queries.METHODS.keys()


# Members among each other


def test_correlation_is_shaded_by_its_size_and_told_as_a_number():
    found = combination_of(make_combination()).correlation
    assert found.names == [ONE, TWO, THREE]
    assert found.rows == [
        (ONE, [Cell("1.00", 5), Cell("0.62", 3), Cell("-0.31", 2)]),
        (TWO, [Cell("0.62", 3), Cell("1.00", 5), Cell("none")]),
        (THREE, [Cell("-0.31", 2), Cell("none"), Cell("1.00", 5)]),
    ]


@pytest.mark.parametrize("told", [[[1.0]], [[1.0, 0.5, 0.5]] * 2, [1, 2, 3], "x", None])
def test_correlation_of_another_shape_is_not_shown(told):
    assert combination_of(make_combination(correlation=told)).correlation is None


def test_weights_and_gates_are_bars():
    found = combination_of(make_combination())
    assert [(weights.title, weights.bars) for weights in found.weights] == [
        ("Bayesian averaging", [Bar(ONE, "98.0%", "98.0%"), Bar(TWO, "2.0%", "2.0%"), Bar(THREE, "0.0%", "0.0%")]),
        ("Stacking", [Bar(ONE, "60.0%", "60.0%"), Bar(TWO, "40.0%", "40.0%"), Bar(THREE, "0.0%", "0.0%")]),
    ]
    assert [(group.title, group.example, group.bars) for group in found.gate] == [
        ("140 prompts", "How do I boil an egg?", [Bar(ONE, "70.0%", "70.0%"), Bar(TWO, "30.0%", "30.0%")]),
        ("72 prompts", "Write a sonnet.", [Bar(ONE, "20.0%", "20.0%"), Bar(TWO, "80.0%", "80.0%")]),
    ]


# Disagreements


def test_disagreements_show_what_each_member_says():
    first = combination_of(make_combination()).disagreements[0]
    assert (first.prompt, first.responses, first.spread) == ("Question 0?", ["Short.", "A much longer answer."], "1.75")
    assert first.opinions == [Opinion(ONE, "+1.25", "-0.50", "A"), Opinion(TWO, "-1.00", "+0.75", "B")]
    assert (first.comparison, first.can_be_asked) == (None, False)


def test_several_judgments_of_one_pair_are_one_disagreement():
    told = make_combination()
    told["disagreements"].append({**told["disagreements"][0], "responses": ["A much longer answer.", "Short."]})
    assert len(combination_of(told).disagreements) == 3


CONVERSATION = [
    {"role": "user", "content": "Eggs?"},
    {"role": "assistant", "content": "Which?"},
    {"role": "user", "content": "Boiled."},
]


def about(comparison, prompt, *places):
    """A disagreement about two of a comparison's responses."""
    texts = [option.response.content for option in comparison.options.select_related("response")]
    told = make_combination()["disagreements"][0]
    return {**told, "prompt": prompt, "responses": [texts[place] for place in places]}


def make_disagreements(project):
    """One about a pair that was judged, one about two of a list, one about a conversation, and one of elsewhere."""
    pair = make_comparison(prompt=make_prompt(project=project, messages=CONVERSATION[:1]), contents=("yes", "no"))
    listed = make_comparison(project=project, contents=("a", "b", "c"))
    chat = make_comparison(prompt=make_prompt(project=project, messages=CONVERSATION))
    for comparison in (pair, listed):
        make_judgment(comparison=comparison)
    asked = [about(pair, "Eggs?", 1, 0), about(listed, listed.prompt.messages[0]["content"], 0, 2)]
    asked += [about(chat, CONVERSATION, 0, 1), about(make_comparison(), "Elsewhere", 0, 1)]
    return (pair, listed, chat), make_combination(disagreements=asked)


def test_disagreements_are_found_among_the_projects_comparisons():
    project = make_project()
    comparisons, told = make_disagreements(project)

    found = combination_of(told, project=project)

    assert [one.comparison for one in found.disagreements] == [*(one.pk for one in comparisons), None]
    assert [one.can_be_asked for one in found.disagreements] == [True, True, True, False]
    assert found.num_askable == 3
    assert found.disagreements[2].prompt == "user:\nEggs?\n\nassistant:\nWhich?\n\nuser:\nBoiled."


def test_one_press_sends_disagreements_to_annotators_and_a_second_adds_nothing(staff: Client):
    project = make_project()
    (pair, listed, chat), told = make_disagreements(project)
    run = combined(told, project=project)
    page = staff.get(run_url("change", run)).content.decode()
    assert "Send 3 to annotators" in page
    assert reverse("admin:annotate_comparison_change", args=[pair.pk]) in page

    said = [str(next(iter(staff.post(run_url("ask", run), follow=True).context["messages"]))) for _ in range(2)]

    assert said == [
        "2 sent to annotators: 1 new comparisons, 1 asked once more; 1 wait for them already, and come next.",
        "Nothing new to send to annotators: 3 wait for them already, and come next.",
    ]
    in_order = Comparison.objects.filter(OPEN, project=project).order_by("-priority")
    texts = [list(one.options.values_list("response__content", flat=True)) for one in in_order]
    assert texts == [["yes", "no"], ["a", "c"], list(chat.options.values_list("response__content", flat=True))]
    assert [one.pk for one in in_order] == [pair.pk, in_order[1].pk, chat.pk]
    assert response_ids(in_order[1]) == response_ids(listed)[::2]


def test_who_may_send_disagreements(staff: Client):
    project = make_project()
    _, told = make_disagreements(project)
    run = combined(told, project=project)
    viewer = make_viewer("view_trainingrun", "view_comparison")
    assert "to annotators</button>" not in viewer.get(run_url("change", run)).content.decode()
    assert viewer.post(run_url("ask", run)).status_code == 403
    assert staff.get(run_url("ask", run)).status_code == 405
    assert staff.post(run_url("ask", make_finished_run(project=project))).status_code == 404
    assert staff.post(run_url("ask", combined(told))).status_code == 404
    hidden = combined(told, project=make_project(is_open=False))
    assert make_viewer("view_trainingrun", "change_project").post(run_url("ask", hidden)).status_code == 404
    no_token = Client(enforce_csrf_checks=True)
    no_token.force_login(make_staff())
    assert no_token.post(run_url("ask", run)).status_code == 403
    assert Comparison.objects.filter(priority__gt=0).count() == 0


def test_a_report_that_is_gone_asks_for_nothing():
    run = make_finished_run(kind="combine", project=make_project())
    assert guidance.ask_disagreements(run=run) == guidance.Asked(0, 0, 0)


# The page


def test_run_page_shows_a_combination(staff: Client):
    result = {"accuracy": 0.752, "method": "fusion", "num_used": 2, "num_left_out": 17}
    response = staff.get(run_url("change", combined(make_combination(), result=result)))
    page = plain(response.content.decode())
    for words in (
        "What each is worth",
        "Against the best single member",
        "+4.0 points [+2.0, +6.0]",
        "What each member adds",
        "Do members say the same?",
        '<td class="shade-2">-0.31</td>',
        "98.0%",
        "How do I boil an egg?",
        "A much longer answer.",
        "Bayesian averaging: It trusts one member.",
    ):
        assert words in page
    assert response.context["report"] is None
    assert [line.label for line in response.context["page"].result] == ["Pairwise accuracy"]
    assert inline(response.content) == []


def test_report_of_another_kind_of_run_is_no_combination():
    assert combination_queries.combination(leave(make_finished_run(), "report.json", make_combination())) is None


@pytest.mark.parametrize("told", ["", "[]", "{", {}, {"members": 3}, {"members": [], "combiners": []}])
def test_no_report_is_no_section(told):
    assert combination_of(told) is None


def hostile(value):
    """The same shape with text that a browser must not take for its own in each place of a text."""
    if isinstance(value, dict):
        return {f"<script>{name}</script>" if "/" in name else name: hostile(one) for name, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return f"<script>{value}</script><img src=x onerror=alert(1)>" if isinstance(value, str) else value


def test_run_page_escapes_what_a_report_says(staff: Client):
    page = staff.get(run_url("change", combined(hostile(make_combination())))).content
    assert b"<script>hub" not in page
    assert b"<img src=x" not in page
    assert page.count(b"&lt;script&gt;") >= 30
    assert inline(page) == []


@pytest.mark.parametrize(
    "value", [None, 0, -1, 1e299, True, "x", [], {}, [None], [[]], [{}], {"x": None}, {"groups": 1}]
)
def test_page_stands_with_any_part_of_another_shape(value):
    run = make_finished_run(kind="combine")
    for part in make_combination():
        leave(run, "report.json", make_combination(**{part: value}))
        assert combination_queries.combination(run), part


@pytest.mark.parametrize(
    "value", [None, "x", -1, 1e299, [], {}, {"value": 1e299, "interval": [-1e299, 1e299]}, {"value": "x"}]
)
def test_page_stands_with_any_value_of_another_shape(staff: Client, value):
    told = make_combination()
    for rows in (
        told["members"],
        told["combiners"],
        told["leave_one_out"],
        told["disagreements"],
        told["gate"]["groups"],
    ):
        for place, name in enumerate(rows[0]):
            rows.append({**rows[0], name: value, "again": place})
    told["combiners"] += [{"method": "mean", "against_mean": {"accuracy_gain": value, "log_loss_gain": value}}]
    assert staff.get(run_url("change", combined(told))).status_code == 200


def test_not_a_number_is_not_measured():
    told = json.dumps(make_combination()).replace("0.712", "NaN").replace("0.566", "Infinity")
    first = combination_of(told).scored[0][1][0]
    assert (first.accuracy.text, first.log_loss.text, first.accuracy.strip) == ("not measured", "not measured", None)


def test_page_asks_the_database_no_more_for_more_disagreements(staff: Client):
    project = make_project()
    numbers = []
    for num_pairs in (1, 4):
        pairs = [make_comparison(project=project) for _ in range(num_pairs)]
        asked = [about(pair, pair.prompt.messages[0]["content"], 0, 1) for pair in pairs]
        run = combined(make_combination(disagreements=asked), project=project)
        with CaptureQueriesContext(connection) as queries:
            staff.get(run_url("change", run))
        numbers.append(len(queries))
    assert numbers[0] == numbers[1]


def test_figure_without_interval_is_drawn_as_a_dot():
    told = make_combination()
    told["members"][0]["log_loss"] = {**figure(0.6), "interval": None}
    strip = combination_of(told).scored[0][1][0].log_loss.strip
    assert (strip.at, strip.low, strip.high) == ("33.67%", "33.67%", "33.67%")
