"""One test that breaks each constraint, and what each user sees."""

import pytest
from django.contrib.auth.models import AnonymousUser, Permission
from django.db import IntegrityError, transaction

from annotate.models import (
    Annotator,
    Comparison,
    Judgment,
    Lease,
    Membership,
    Option,
    Project,
    Prompt,
    Response,
    Skip,
)
from tests.factories import (
    make_annotator,
    make_comparison,
    make_judgment,
    make_lease,
    make_project,
    make_prompt,
    make_user,
    response_ids,
)

pytestmark = pytest.mark.django_db


def again(row, **values):
    """The same row once more, with other values."""
    fields = {
        field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields if not field.primary_key
    }
    return type(row)(**{**fields, **values})


def breaks(name):
    """What each constraint forbids, as an unsaved row."""
    match name:
        case "project_overlap_positive":
            return again(make_project(), name="other", overlap=0)
        case "membership_once":
            project = make_project(members=(make_user(),))
            return again(Membership.objects.get(project=project))
        case "prompt_once":
            return again(make_prompt())
        case "response_once":
            make_comparison()
            return again(Response.objects.first())
        case "comparison_once":
            return again(make_comparison())
        case "comparison_no_surplus":
            return again(make_comparison(), digest="other", num_taken=2)
        case "comparison_num_responses":
            return again(make_comparison(), digest="other", num_responses=25)
        case "option_response_once":
            make_comparison()
            return again(Option.objects.first(), position=5)
        case "option_position_once":
            make_comparison()
            other = response_ids(make_comparison())[0]
            return again(Option.objects.first(), response_id=other)
        case "lease_once":
            return again(make_lease())
        case "skip_once":
            skip = Skip.objects.create(comparison=make_comparison(), annotator=make_annotator())
            return again(skip)
        case "annotator_once":
            return again(Annotator.objects.create(kind="imported", project=make_project(), name="w1"))
        case "annotator_person_has_account":
            return Annotator(kind="person", project=make_project(), name="nobody")
    judgment = make_judgment()
    match name:
        case "judgment_once":
            return again(judgment, key="6f1c2d3e-0000-4000-8000-000000000001")
        case "judgment_imported_once":
            Judgment.objects.filter(pk=judgment.pk).update(import_key="a")
            return again(judgment, key="6f1c2d3e-0000-4000-8000-000000000001", aspect="other", import_key="a")
        case "judgment_repeat_is_imported":
            return again(judgment, key="6f1c2d3e-0000-4000-8000-000000000001", repeat=1)
        case "judgment_strength":
            return again(judgment, key="6f1c2d3e-0000-4000-8000-000000000001", aspect="other", strength=3)
    raise AssertionError(name)


def names():
    models = (Project, Membership, Prompt, Response, Comparison, Option, Annotator, Lease, Skip, Judgment)
    return [constraint.name for model in models for constraint in model._meta.constraints]


@pytest.mark.parametrize("name", names())
def test_constraint(name):
    row = breaks(name)
    digest = getattr(row, "digest", None)
    with pytest.raises(IntegrityError), transaction.atomic():
        type(row).objects.bulk_create([row])  # as it is: save would compute the digest anew
    assert getattr(row, "digest", None) == digest


def test_a_person_has_one_annotator():
    annotator = make_annotator()
    with pytest.raises(IntegrityError), transaction.atomic():
        Annotator.objects.create(kind="person", user=annotator.user, name="again")


def test_projects_for_user_are_open_ones_and_memberships():
    user, other, inactive = make_user(), make_user(), make_user(is_active=False)
    opened = make_project(name="a open")
    closed = make_project(name="b closed", is_open=False, members=(user, inactive))
    staff = make_user(is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_project"))

    def seen(user):
        return list(Project.objects.for_user(user))

    assert seen(user) == [opened, closed]
    assert seen(other) == seen(make_user(is_staff=True)) == [opened]
    assert seen(staff) == seen(make_user(is_staff=True, is_superuser=True)) == [opened, closed]
    assert seen(inactive) == seen(AnonymousUser()) == []


def test_comparisons_for_user_follow_their_projects():
    user = make_user()
    mine = make_comparison(project=make_project(is_open=False, members=(user,)))
    make_comparison(project=make_project(is_open=False))
    assert list(Comparison.objects.for_user(user)) == [mine]


def test_lease_key_belongs_to_one_annotator_and_comparison(settings):
    keys = {Lease.key_for(comparison, annotator) for comparison in (1, 2) for annotator in (1, 2, 12)}
    assert len(keys) == 6
    before = Lease.key_for(1, 1)
    assert Lease.key_for(1, 1) == before
    settings.SECRET_KEY = "another" * 10
    assert Lease.key_for(1, 1) != before


def test_rows_have_names():
    judgment, lease = make_judgment(), make_lease()
    annotator = Annotator.objects.create(kind="imported", project=make_project(), name="w1")
    comparison = judgment.comparison
    assert [str(row) for row in (comparison, judgment, annotator, judgment.annotator)] == [
        f"Comparison {comparison.pk}",
        f"Judgment {judgment.pk}",
        "w1 (imported)",
        judgment.annotator.user.username,
    ]
    assert str(lease) == f"Comparison {lease.comparison_id} for {lease.annotator}"
    assert str(comparison.prompt) == comparison.prompt.messages[0]["content"]
