from datetime import timedelta

import pytest
from django.db.models import F
from django.utils import timezone

from annotate import services
from annotate.distribution import MAX_HELD, lease_shown
from annotate.errors import NotLeased
from annotate.models import Comparison, Gold, Judgment, Lease, Mirror, Project, Standing
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, response_ids

pytestmark = pytest.mark.django_db

Strategy = Project.Strategy


def comparisons_of(project, number, **values):
    return [make_comparison(project=project, **values) for _ in range(number)]


def make_gold(project, *, use=Gold.Use.MIXED, **values):
    comparison = make_comparison(project=project, is_gold=True, num_wanted=1000, **values)
    ranking = [[pk] for pk in response_ids(comparison)]
    return Gold.objects.create(comparison=comparison, project=project, ranking=ranking, use=use)


def judge_all(project, annotator, *, is_right=True):
    """The comparisons that the annotator gets, one after the other; each is answered as its source lists it."""
    seen = []
    while lease := services.lease_next(project=project, annotator=annotator):
        ids = response_ids(lease.comparison)
        services.record_judgment(
            comparison=lease.comparison,
            annotator=annotator,
            ranking=[[pk] for pk in (ids if is_right else ids[::-1])],
            key=lease.key,
            source=Judgment.Source.BROWSER,
        )
        seen.append(lease.comparison_id)
    return seen


# Ahead of the page


def test_the_comparison_after_the_one_on_the_page_is_leased_ahead():
    project, annotator = make_project(), make_annotator()
    first, second, _third = comparisons_of(project, 3)

    on_page = services.lease_next(project=project, annotator=annotator)
    ahead = services.lease_next(project=project, annotator=annotator, besides=[first.pk])

    assert (on_page.comparison, ahead.comparison) == (first, second)
    assert services.lease_next(project=project, annotator=annotator) == on_page
    assert services.lease_next(project=project, annotator=annotator, besides=[first.pk]) == ahead


def test_nobody_holds_more_than_two():
    project, annotator = make_project(), make_annotator()
    held = [comparison.pk for comparison in comparisons_of(project, 4)]

    leases = [services.lease_next(project=project, annotator=annotator, besides=held[:n]) for n in range(4)]

    assert [lease and lease.comparison_id for lease in leases] == [*held[:MAX_HELD], None, None]
    assert Lease.objects.count() == MAX_HELD


def test_a_submit_brings_the_comparison_that_follows_the_one_fetched_ahead():
    project, annotator = make_project(), make_annotator()
    first, second, third = comparisons_of(project, 3)
    lease = services.lease_next(project=project, annotator=annotator)
    services.lease_next(project=project, annotator=annotator, besides=[first.pk])

    judgment, following = services.record_and_lease_next(
        comparison=first,
        annotator=annotator,
        besides=[second.pk],
        ranking=[[pk] for pk in lease.shown_order],
        key=lease.key,
        source=Judgment.Source.BROWSER,
    )

    assert (judgment.comparison, following.comparison) == (first, third)


# The order


def test_random_order_is_the_same_for_everybody_and_not_that_of_the_source():
    project = make_project(strategy=Strategy.RANDOM, overlap=2)
    comparisons = comparisons_of(project, 12)
    by_shuffle = [pk for _, pk in sorted((comparison.shuffle, comparison.pk) for comparison in comparisons)]

    orders = [judge_all(project, make_annotator()) for _ in range(2)]

    assert orders == [by_shuffle, by_shuffle]
    assert by_shuffle != sorted(by_shuffle)


def test_most_informative_come_first():
    project = make_project(strategy=Strategy.INFORMATIVE, random_share=0)
    low, high, middle = (make_comparison(project=project, priority=priority) for priority in (0.1, 0.9, 0.5))

    assert judge_all(project, make_annotator()) == [high.pk, middle.pk, low.pk]


def test_a_share_of_the_most_informative_is_asked_at_random():
    project = make_project(strategy=Strategy.INFORMATIVE, random_share=1)
    comparisons = comparisons_of(project, 8)
    for place, comparison in enumerate(comparisons):
        Comparison.objects.filter(pk=comparison.pk).update(priority=place)

    assert judge_all(project, make_annotator()) == [
        pk for _, pk in sorted((comparison.shuffle, comparison.pk) for comparison in comparisons)
    ]


@pytest.mark.parametrize(
    ("values", "is_random"),
    [
        ({"strategy": Strategy.IN_ORDER}, False),
        ({"strategy": Strategy.RANDOM}, True),
        ({"strategy": Strategy.INFORMATIVE, "random_share": 0}, False),
        ({"strategy": Strategy.INFORMATIVE, "random_share": 1}, True),
    ],
)
def test_a_judgment_says_whether_it_was_asked_by_chance(values, is_random):
    project = make_project(**values)
    comparisons_of(project, 2)

    judge_all(project, make_annotator())

    assert list(Judgment.objects.values_list("is_random", flat=True)) == [is_random] * 2


@pytest.mark.parametrize("strategy", Strategy.values)
def test_every_order_comes_back_to_what_was_left_behind(strategy):
    project, annotator = make_project(strategy=strategy, overlap=1), make_annotator()
    comparisons = comparisons_of(project, 3)
    first = services.lease_next(project=project, annotator=make_annotator())
    Lease.objects.filter(pk=first.pk).update(expires_at=timezone.now() + timedelta(hours=1))

    others = judge_all(project, annotator)
    services.skip_comparison(comparison=first.comparison, annotator=first.annotator)

    assert {*others, *judge_all(project, annotator)} == {comparison.pk for comparison in comparisons}


# Mirrored orders


def test_every_second_annotator_sees_the_mirror_image():
    project = make_project(mirror_share=1, overlap=4)
    make_comparison(project=project, k=5)

    leases = [services.lease_next(project=project, annotator=make_annotator()) for _ in range(4)]

    straight, mirrored = leases[0].shown_order, leases[0].shown_order[::-1]
    assert [(lease.mirror, lease.shown_order) for lease in leases] == [
        (Mirror.STRAIGHT, straight),
        (Mirror.MIRRORED, mirrored),
        (Mirror.STRAIGHT, straight),
        (Mirror.MIRRORED, mirrored),
    ]


def test_a_share_of_comparisons_is_mirrored():
    project = make_project(mirror_share=0.3)
    comparisons = comparisons_of(project, 200)
    annotator = make_annotator()
    assert len(judge_all(project, annotator)) == len(comparisons)

    num_mirrored = Judgment.objects.exclude(mirror=Mirror.OWN).count()

    assert 30 < num_mirrored < 90  # 60 expected, standard deviation 6.5


def test_a_late_answer_is_read_in_the_order_in_which_it_was_shown():
    project = make_project(mirror_share=1, overlap=2)
    comparison = make_comparison(project=project, k=6)
    make_judgment(comparison=comparison)
    Comparison.objects.filter(pk=comparison.pk).update(num_wanted=3, num_taken=1)
    lease = services.lease_next(project=project, annotator=make_annotator())
    assert lease.mirror == Mirror.MIRRORED
    Lease.objects.all().delete()

    shown = lease_shown(comparison, lease.annotator, lease.key)

    assert (shown.pk, shown.mirror, shown.shown_order) == (None, Mirror.MIRRORED, lease.shown_order)
    with pytest.raises(NotLeased):
        lease_shown(comparison, make_annotator(), lease.key)


def test_a_place_taken_again_is_read_in_the_order_that_the_page_shows():
    project = make_project(mirror_share=1, overlap=2)
    comparison = make_comparison(project=project)
    lease = services.lease_next(project=project, annotator=make_annotator())
    Lease.objects.filter(pk=lease.pk).update(mirror=Mirror.MIRRORED, shown_order=lease.shown_order[::-1])

    shown = lease_shown(comparison, lease.annotator, lease.key)

    assert (shown.pk, shown.mirror, shown.shown_order) == (lease.pk, Mirror.STRAIGHT, lease.shown_order)


# Comparisons with a known answer


def test_gold_stands_outside_the_queue():
    project = make_project(gold_rate=0)
    ordinary = make_comparison(project=project)
    for use in Gold.Use.values:
        make_gold(project, use=use)

    assert judge_all(project, make_annotator()) == [ordinary.pk]


def test_gold_is_mixed_in_for_everybody_once():
    project = make_project(gold_rate=1)
    gold = make_gold(project)
    make_gold(project, use=Gold.Use.EXAMPLE)
    ordinary = make_comparison(project=project, num_wanted=2)

    orders = [judge_all(project, make_annotator()) for _ in range(2)]

    assert orders == [[gold.comparison_id, ordinary.pk]] * 2


def test_gold_comes_at_its_rate():
    project = make_project(gold_rate=0.25)
    golds = {make_gold(project).comparison_id for _ in range(100)}
    comparisons_of(project, 200)
    annotator = make_annotator()

    seen = judge_all(project, annotator)[:200]

    assert 30 < len(golds.intersection(seen)) < 70  # 50 expected, standard deviation 6.1


def test_annotators_qualify_before_the_queue_opens():
    project = make_project(qualification_size=2, qualification_accuracy=0.5)
    golds = [make_gold(project, use=Gold.Use.QUALIFICATION).comparison_id for _ in range(2)]
    ordinary = make_comparison(project=project, num_wanted=2)
    good, bad = make_annotator(), make_annotator()

    orders = judge_all(project, good), judge_all(project, bad, is_right=False)

    assert (set(orders[0][:2]), orders[0][2:], set(orders[1])) == (set(golds), [ordinary.pk], set(golds))
    standings = {standing.annotator: standing for standing in Standing.objects.all()}
    assert [
        (standing.num_gold, standing.gold_score, bool(standing.qualified_at), bool(standing.failed_at))
        for standing in (standings[good], standings[bad])
    ] == [(2, 2.0, True, False), (2, 0.0, False, True)]


# Renewing


def test_a_page_that_is_alive_keeps_its_lease():
    project = make_project(lease_minutes=15)
    make_comparison(project=project)
    lease = services.lease_next(project=project, annotator=make_annotator())
    later = lease.leased_at + timedelta(minutes=14)

    is_held = services.renew_lease(comparison=lease.comparison, annotator=lease.annotator, now=later)

    lease.refresh_from_db()
    assert (is_held, lease.expires_at) == (True, later + timedelta(minutes=15))
    assert services.lease_next(project=project, annotator=make_annotator(), now=later + timedelta(minutes=14)) is None


def test_a_lease_that_ran_out_is_taken_again_where_the_place_is_free():
    project = make_project()
    make_comparison(project=project)
    lease = services.lease_next(project=project, annotator=make_annotator())
    services.skip_comparison(comparison=lease.comparison, annotator=make_annotator())
    Lease.objects.all().delete()
    Comparison.objects.update(num_taken=0)

    assert services.renew_lease(comparison=lease.comparison, annotator=lease.annotator)
    assert list(Lease.objects.values_list("comparison", "annotator", "shown_order")) == [
        (lease.comparison_id, lease.annotator_id, lease.shown_order)
    ]


def test_a_lease_that_went_to_somebody_else_is_not_renewed():
    project = make_project()
    make_comparison(project=project)
    lease = services.lease_next(project=project, annotator=make_annotator())
    tomorrow = timezone.now() + timedelta(days=1)
    assert services.lease_next(project=project, annotator=make_annotator(), now=tomorrow)

    assert not services.renew_lease(comparison=lease.comparison, annotator=lease.annotator, now=tomorrow)


# What nobody is asked


def close(comparison):
    Comparison.objects.filter(pk=comparison.pk).update(is_trial=True, is_closed=True, num_wanted=F("num_taken"))


def test_a_place_at_a_closed_comparison_that_is_given_up_is_gone():
    comparison = make_comparison(num_wanted=2)
    skipping, late, other = (make_annotator() for _ in range(3))
    for annotator in (skipping, late):
        services.lease_next(project=comparison.project, annotator=annotator)
    close(comparison)
    services.skip_comparison(comparison=comparison, annotator=skipping)
    assert services.lease_next(project=comparison.project, annotator=other) is None
    later = timezone.now() + timedelta(hours=1)
    assert services.lease_next(project=comparison.project, annotator=other, now=later) is None
    comparison.refresh_from_db()
    assert (comparison.num_taken, comparison.num_wanted) == (0, 0)


def test_a_place_at_a_trial_that_is_not_closed_goes_to_somebody_else():
    comparison = make_comparison(is_trial=True)
    skipping, other = make_annotator(), make_annotator()
    services.lease_next(project=comparison.project, annotator=skipping)
    services.skip_comparison(comparison=comparison, annotator=skipping)
    assert services.lease_next(project=comparison.project, annotator=other).comparison == comparison


def test_another_overlap_changes_no_trial():
    project = make_project()
    closed, trial, other = (make_comparison(project=project) for _ in range(3))
    make_judgment(comparison=closed)
    close(closed)
    Comparison.objects.filter(pk=trial.pk).update(is_trial=True)
    services.set_overlap(project=project, overlap=3)
    wanted = dict(Comparison.objects.values_list("pk", "num_wanted"))
    assert wanted == {closed.pk: 1, trial.pk: 1, other.pk: 3}


def test_nobody_judges_what_they_wrote():
    author, other = make_annotator(), make_annotator()
    project = make_project()
    own, next_one = (make_comparison(project=project) for _ in range(2))
    response = own.responses.first()
    response.author = author
    response.save()
    assert services.lease_next(project=project, annotator=author).comparison == next_one
    assert services.lease_next(project=project, annotator=other).comparison == own
    Comparison.objects.update(num_wanted=2)
    assert not Comparison.objects.filter(pk=own.pk).open_to(author).exists()
    assert not services.renew_lease(comparison=own, annotator=author)
