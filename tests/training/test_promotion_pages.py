import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from tests.factories import make_user
from tests.training.factories import make_finished_run, make_judged_project, make_preference_set, make_staff
from tests.training.reports import figure, gains, leave, make_combination, make_report
from tests.training.test_admin import inline, make_viewer, run_url, start_url
from tests.training.test_promotions import evaluate, folder, make_reward, promote_first
from training import promotion_services
from training.models import Promotion

pytestmark = pytest.mark.django_db
LIST = "admin:training_promotion_changelist"
PROMOTE = "admin:training_promotion_promote"


def plain(content: bytes) -> str:
    return content.decode().replace("\u00a0", " ")


def page_of(client: Client, run) -> str:
    return plain(client.get(run_url("change", run)).content)


def promote(client: Client, run, previous=None, **values) -> list[str]:
    """What the page says after the button."""
    data = {"run": run.pk, "previous": previous.pk if previous else "", **values}
    response = client.post(reverse(PROMOTE), data, follow=True)
    assert response.redirect_chain == [(run_url("change", run), 302)]
    return [str(message) for message in response.context["messages"]]


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(make_staff(username="staff"))
    return client


@pytest.fixture
def preference_set():
    return make_preference_set(name="first", project=make_judged_project(name="cooking"))


@pytest.fixture
def in_use(preference_set):
    return promote_first(make_reward(preference_set, name="in-use"), user=make_user(username="amina"))


# The box on a run's page


def test_first_reward_model_is_promoted_by_one_press(staff: Client, preference_set):
    run = leave(make_reward(preference_set), "report.json", make_report())
    page = page_of(staff, run)
    for words in (
        "The reward model of cooking",
        "None is in use yet.",
        "It is right more often than a coin: that is what the first reward model of a project has to be.",
        "71.2% [68.2, 74.2]",
        "To pass, its accuracy&#x27;s 95% interval has to lie above one half as a whole.",
        "Measured on 812 ordered pairs of 212 prompts.",
        ">Promote</button>",
    ):
        assert words in page
    assert "Overrule" not in page

    assert promote(staff, run) == [f"{run} is the reward model of cooking now."]

    promotion = Promotion.objects.get()
    assert (promotion.run, promotion.created_by.username) == (run, "staff")
    assert "This is the one in use." in page_of(staff, run)
    assert promote(staff, run) == [f"{run} is the reward model of cooking now."]
    assert Promotion.objects.count() == 1


def test_box_draws_the_paired_test(staff: Client, preference_set, in_use):
    run = make_reward(preference_set)
    evaluate(preference_set, run, in_use.run)
    response = staff.get(run_url("change", run))
    page = plain(response.content)
    for words in (
        f'In use now: <a href="{run_url("change", in_use.run)}">{in_use.run}</a>.',
        f"It is not worse than {in_use.run} on held-out judgments.",
        "+3.0 points [+1.0, +5.0]",
        "+0.020 [+0.010, +0.030]",
        "<td>0.013</td>",
        "nor may either estimated gain be below -2 points of accuracy or -0.02 nats of log-loss.",
        ">Promote</button>",
    ):
        assert words in page
    assert inline(response.content) == []
    assert promote(staff, run, in_use) == [f"{run} is the reward model of cooking now."]


def test_box_offers_to_measure_what_was_not_measured(staff: Client, preference_set, in_use):
    run = make_reward(preference_set)
    page = page_of(staff, run)
    query = f"preference_set={preference_set.pk}&amp;reward_model=helmsman&amp;other_reward_model=in-use&amp;split=test"
    assert f'href="{start_url("evaluate")}?{query}"' in page
    assert "Nothing shows yet how this one compares with it on the same held-out judgments." in page
    form = staff.get(f"{start_url('evaluate')}?{query.replace('&amp;', '&')}").context["form"]
    assert (form["reward_model"].value(), form["other_reward_model"].value()) == ("helmsman", "in-use")


def test_box_offers_to_combine_again_what_was_fitted_on_the_test_split(staff: Client, preference_set, in_use):
    config = {"members": "hub/a, hub/b", "method": "fusion", "num_folds": 5}
    run = leave(make_reward(preference_set, kind="combine", config=config), "report.json", make_combination())
    page = page_of(staff, run)
    assert f'href="{start_url("combine")}?preference_set={preference_set.pk}&amp;members=hub%2Fa' in page
    assert "incumbent=in-use" in page


def test_box_says_why_a_test_does_not_count_and_offers_none_that_cannot(staff: Client, preference_set):
    config = {"members": "hub/a, hub/b", "num_folds": 5}
    run = make_reward(preference_set, kind="combine", config=config)
    evaluation = evaluate(preference_set, run)
    page = page_of(staff, run)
    why = "a reward was cross-fitted, and so on test prompts too."
    link = f'<a href="{run_url("change", evaluation)}">Run {evaluation.pk}</a>'
    for words in (
        "Nothing shows yet what this one is worth on held-out judgments.",
        f"{link} measured it, but does not count: {why}",
        f"A new test on {preference_set} would not count: {why} It takes judgments of new prompts, or a reason.",
        "Overrule and promote",
    ):
        assert words in page
    assert f"{start_url('evaluate')}?preference_set={preference_set.pk}&amp;reward_model=" not in page


def test_box_tells_of_a_test_in_another_project_without_a_link(staff: Client, preference_set):
    run = make_reward(preference_set)
    evaluate(make_preference_set(), run)
    page = page_of(staff, run)
    assert "A run of another project measured it, but does not count: it is not on judgments of this project." in page
    assert ">Evaluate it</a>" in page


def test_a_closed_gate_can_be_overruled_with_a_reason(staff: Client, preference_set, in_use):
    run = make_reward(preference_set)
    evaluate(preference_set, run, in_use.run, report=make_report(comparison=gains(-0.1, -0.1)))
    page = page_of(staff, run)
    assert f"It is worse than {in_use.run} on held-out judgments." in page
    assert ">Promote</button>" not in page

    assert promote(staff, run, in_use) == [
        "It did not pass the test on held-out judgments. To promote it all the same, say why."
    ]
    assert promote(staff, run, in_use, reason="x" * 2001) == [
        "Ensure this value has at most 2000 characters (it has 2001)."
    ]
    assert promote(staff, run, in_use, reason="<b>Half</b> as large.") == [f"{run} is the reward model of cooking now."]

    page = page_of(staff, run)
    assert "This is the one in use, promoted against the test." in page
    assert "Because: &lt;b&gt;Half&lt;/b&gt; as large." in page


def test_who_saw_another_one_in_use_is_told(staff: Client, preference_set, in_use):
    run = leave(make_reward(preference_set), "report.json", make_report())
    assert promote(staff, run, None, reason="because") == [
        "The current reward model of cooking is another one by now: look at it first."
    ]


def test_box_is_only_on_pages_of_a_projects_reward_models(staff: Client, preference_set):
    for values in ({"kind": "sft"}, {"project": None, "preference_set": None}, {"kind": "evaluate"}):
        run = make_finished_run(**{"project": preference_set.project, "preference_set": preference_set, **values})
        assert "The reward model of" not in page_of(staff, run)
        assert promote(staff, run, None, reason="because") == [f"{run} has made no reward model for a project."]


def test_who_may_promote(preference_set):
    run = leave(make_reward(preference_set), "report.json", make_report())
    data = {"run": run.pk, "previous": ""}
    viewer = make_viewer("view_trainingrun", "view_promotion", "change_trainingrun")
    assert "The reward model of cooking" in page_of(viewer, run)
    assert ">Promote</button>" not in page_of(viewer, run)
    assert viewer.post(reverse(PROMOTE), data).status_code == 403
    promoter = make_viewer("view_trainingrun", "add_promotion")
    assert promoter.get(reverse(PROMOTE)).status_code == 405
    for wrong in ("", "x", "9" * 30, 0):
        assert promoter.post(reverse(PROMOTE), {**data, "run": wrong}).status_code == 404
    hidden = make_preference_set(project=make_judged_project(is_open=False))
    assert promoter.post(reverse(PROMOTE), {**data, "run": make_reward(hidden).pk}).status_code == 404
    no_token = Client(enforce_csrf_checks=True)
    no_token.force_login(make_staff())
    assert no_token.post(reverse(PROMOTE), data).status_code == 403
    assert not Promotion.objects.exists()
    promote(promoter, run)
    assert Promotion.objects.get().run == run


def test_run_page_asks_the_database_no_more_for_more_promotions(staff: Client, preference_set):
    run = make_reward(preference_set)
    previous = promote_first(make_reward(preference_set, name="first"))
    numbers = []
    for number in range(2):
        previous = promotion_services.promote(
            run=make_reward(preference_set, name=f"next-{number}"), previous=previous.pk, reason="because"
        )
        with CaptureQueriesContext(connection) as queries:
            staff.get(run_url("change", run))
        numbers.append(len(queries))
    assert numbers[0] == numbers[1]


# History


def make_history(preference_set, in_use) -> Promotion:
    """One that passed, and one that was overruled."""
    run = make_reward(preference_set)
    evaluate(preference_set, run, in_use.run)
    passed = promotion_services.promote(run=run, previous=in_use.pk)
    return promotion_services.promote(
        run=make_reward(preference_set, name="smaller"),
        previous=passed.pk,
        reason="<script>It is half as large.</script>",
        user=make_user(username="ben"),
    )


def test_history_tells_who_promoted_what_by_which_test_and_why(staff: Client, preference_set, in_use):
    make_history(preference_set, in_use)
    response = staff.get(reverse(LIST), {"project__id__exact": preference_set.project.pk})
    page = plain(response.content)
    for words in (
        "71.2% [68.2, 74.2], 812 pairs",
        "+3.0 points [+1.0, +5.0], +0.020 [+0.010, +0.030] nats, 812 pairs",
        "&lt;script&gt;It is half as large.&lt;/script&gt;",
        "amina",
        "ben",
        f'<a href="{run_url("change", in_use.run)}">{in_use.run}</a>',
        "none before",
    ):
        assert words in page
    assert reverse("admin:training_promotion_add") not in page
    assert response.context["cl"].result_count == 3
    assert inline(response.content) == []


def test_history_asks_the_database_no_more_for_three_promotions(staff: Client, preference_set, in_use):
    numbers = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as queries:
            staff.get(reverse(LIST))
        numbers.append(len(queries))
        if len(numbers) == 1:
            make_history(preference_set, in_use)
    assert numbers[0] == numbers[1]


def test_page_of_a_promotion_draws_its_test(staff: Client, preference_set, in_use):
    overruled = make_history(preference_set, in_use)
    for promotion, told in (
        (in_use, ("71.2% [68.2, 74.2]", "none before", "amina", str(preference_set))),
        (overruled.previous, (f"It is not worse than {in_use.run} on held-out judgments.", "+3.0 points [+1.0, +5.0]")),
        (overruled, ("There was none.", "&lt;script&gt;It is half as large.&lt;/script&gt;", "ben", "helmsman")),
    ):
        url = reverse("admin:training_promotion_change", args=[promotion.pk])
        response = staff.get(url)
        for words in told:
            assert words in plain(response.content)
        assert inline(response.content) == []
        assert staff.post(url).status_code == 405


def test_history_shows_only_projects_that_the_user_may_see(staff: Client):
    hidden = promote_first(make_reward(make_preference_set(project=make_judged_project(is_open=False))))
    viewer = make_viewer("view_promotion")
    assert viewer.get(reverse(LIST)).context["cl"].result_count == 0
    assert viewer.get(reverse("admin:training_promotion_change", args=[hidden.pk])).status_code == 404
    assert make_viewer("view_trainingrun").get(reverse(LIST)).status_code == 403


def test_a_promotion_is_neither_added_nor_deleted_by_hand(staff: Client, in_use):
    assert staff.get(reverse("admin:training_promotion_add")).status_code == 403
    for name in ("delete", "history"):
        staff.post(reverse(f"admin:training_promotion_{name}", args=[in_use.pk]), {"post": "yes"})
    assert Promotion.objects.get() == in_use


# Where it is offered


@pytest.mark.parametrize(("kind", "field"), [("rejection_sampling", "reward_model"), ("combine", "incumbent")])
def test_start_page_offers_the_projects_current_reward_model(staff: Client, preference_set, in_use, kind, field):
    make_reward(preference_set, name="newer")
    response = staff.get(start_url(kind))
    assert response.context["form"][field].value() == "in-use"
    assert f"{in_use.run} is the current reward model of cooking." in response.content.decode()
    asked = staff.get(start_url(kind), {field: "newer"}).context["form"]
    assert asked[field].value() == "newer"


@pytest.mark.parametrize("kind", ["rejection_sampling", "combine"])
def test_start_page_offers_no_reward_model_of_a_project_that_nobody_chose(staff: Client, preference_set, in_use, kind):
    other, told = make_preference_set(), "is the current reward model of cooking."
    for own, is_told in ((preference_set, True), (other, False)):
        assert (told in staff.get(start_url(kind), {"preference_set": own.pk}).content.decode()) is is_told
        assert (told in staff.post(start_url(kind), {"preference_set": own.pk}).content.decode()) is is_told
    assert told not in staff.get(start_url(kind)).content.decode()


def test_start_page_offers_it_by_its_folder_where_its_name_stands_for_another(staff: Client, preference_set, in_use):
    make_reward(preference_set, name="in-use")
    assert staff.get(start_url("rejection_sampling")).context["form"]["reward_model"].value() == folder(in_use.run)


def test_start_page_offers_that_of_the_set_it_was_reached_from(staff: Client, preference_set, in_use):
    other = make_preference_set()
    promote_first(make_reward(other, name="others"))
    for asked, name in ((preference_set, "in-use"), (other, "others"), (None, "others")):
        form = staff.get(start_url("rejection_sampling"), {"preference_set": asked.pk} if asked else {}).context["form"]
        assert form["reward_model"].value() == name


def test_start_page_without_a_current_reward_model_offers_the_newest(staff: Client, preference_set):
    make_reward(preference_set, name="newest")
    form = staff.get(start_url("rejection_sampling")).context["form"]
    assert form["reward_model"].value() == "newest"
    assert staff.get(start_url("combine")).context["form"]["incumbent"].value() == ""


def test_pictures_of_a_test_have_room_for_a_gain_of_nothing(staff: Client, preference_set, in_use):
    run = make_reward(preference_set)
    nothing = {"value": 0.0, "interval": [0.0, 0.0]}
    comparison = {"accuracy_gain": nothing, "log_loss_gain": nothing}
    evaluate(
        preference_set, run, in_use.run, report=make_report(comparison=comparison, figures={"accuracy": figure(0.7)})
    )
    assert "+0.0 points [+0.0, +0.0]" in page_of(staff, run)
