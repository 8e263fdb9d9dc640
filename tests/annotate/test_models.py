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


def made(model, make):
    """The first row of `model` there is after `make`."""
    make()
    return model.objects.first()


def another(**values):
    """A second judgment like the first one."""
    return again(make_judgment(), key="6f1c2d3e-0000-4000-8000-000000000001", **values)


def imported_twice():
    judgment = make_judgment()
    Judgment.objects.update(import_key="a")
    return again(judgment, key="6f1c2d3e-0000-4000-8000-000000000001", aspect="other", import_key="a")


# What each constraint forbids, as an unsaved row.
BROKEN = {
    "project_overlap_positive": lambda: again(make_project(), name="other", overlap=0),
    "membership_once": lambda: again(made(Membership, lambda: make_project(members=(make_user(),)))),
    "prompt_once": lambda: again(make_prompt()),
    "response_once": lambda: again(made(Response, make_comparison)),
    "comparison_once": lambda: again(make_comparison()),
    "comparison_no_surplus": lambda: again(make_comparison(), digest="other", num_taken=2),
    "comparison_num_responses": lambda: again(make_comparison(), digest="other", num_responses=25),
    "option_response_once": lambda: again(made(Option, make_comparison), position=5),
    "option_position_once": lambda: again(
        made(Option, make_comparison), response_id=response_ids(make_comparison())[0]
    ),
    "annotator_once": lambda: again(Annotator.objects.create(kind="imported", project=make_project(), name="w1")),
    "annotator_person_has_account": lambda: Annotator(kind="person", project=make_project(), name="nobody"),
    "lease_once": lambda: again(make_lease()),
    "skip_once": lambda: again(Skip.objects.create(comparison=make_comparison(), annotator=make_annotator())),
    "judgment_once": another,
    "judgment_imported_once": imported_twice,
    "judgment_repeat_is_imported": lambda: another(repeat=1),
    "judgment_strength": lambda: another(aspect="other", strength=3),
}


def names():
    models = (Project, Membership, Prompt, Response, Comparison, Option, Annotator, Lease, Skip, Judgment)
    return [constraint.name for model in models for constraint in model._meta.constraints]


def test_every_constraint_has_a_test():
    assert sorted(BROKEN) == sorted(names())


@pytest.mark.parametrize("name", BROKEN)
def test_constraint(name):
    row = BROKEN[name]()
    constraint = next(item for item in type(row)._meta.constraints if item.name == name)
    with pytest.raises(IntegrityError) as refused, transaction.atomic():
        type(row).objects.bulk_create([row])  # as it is: save would compute the digest anew
    columns = [type(row)._meta.get_field(field).column for field in getattr(constraint, "fields", ())]
    by_columns = f"failed: {', '.join(f'{type(row)._meta.db_table}.{column}' for column in columns)}"
    assert name in str(refused.value) or str(refused.value).endswith(by_columns)  # SQLite names a unique one so


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
