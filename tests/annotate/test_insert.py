import uuid

import pytest

from annotate.insert import insert
from annotate.models import Judgment, Prompt
from tests.factories import make_annotator, make_comparison, make_project

pytestmark = pytest.mark.django_db


def values(judgment):
    """What a judgment holds, but for what is its own."""
    own = {"id", "key", "created_at", "import_key"}
    return {
        field.name: getattr(judgment, field.name) for field in judgment._meta.concrete_fields if field.name not in own
    }


def test_insert_stores_what_the_orm_would():
    comparison, annotator = make_comparison(), make_annotator()
    given = {"repeat": 0, "ranking": [[1], [2]], "source": "import", "meta": {"é": [1.5, None]}, "seconds": 2.5}
    ids = {"project": comparison.project_id, "comparison": comparison.pk, "annotator": annotator.pk}
    names = (*ids, *given, "import_key")

    other = {**given, "repeat": 1, "meta": {}}
    pks = insert(Judgment, names, [(*ids.values(), *given.values(), "a"), (*ids.values(), *other.values(), "b")])

    stored = [Judgment.objects.get(pk=pk) for pk in pks]
    expected = [
        Judgment(project=comparison.project, comparison=comparison, annotator=annotator, **fields)
        for fields in (given, other)
    ]
    assert [values(judgment) for judgment in stored] == [values(judgment) for judgment in expected]
    assert [judgment.import_key for judgment in stored] == ["a", "b"]
    assert all(isinstance(judgment.key, uuid.UUID) and judgment.created_at for judgment in stored)
    assert stored[0].key != stored[1].key


def test_insert_returns_the_keys_in_the_order_of_many_rows():
    project = make_project()
    rows = [(project.pk, [{"role": "user", "content": f"{n}?"}], f"{n:064}") for n in range(1500)]
    pks = insert(Prompt, ("project", "messages", "digest"), rows)
    stored = dict(Prompt.objects.values_list("pk", "digest"))
    assert [stored[pk] for pk in pks] == [digest for _, _, digest in rows]


def test_insert_of_nothing_asks_nothing(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert insert(Prompt, ("project", "messages", "digest"), []) == []


def test_insert_holds_to_what_one_statement_may_carry():
    project = make_project()
    rows = [(project.pk, [], f"{number:064x}") for number in range(25_000)]

    ids = insert(Prompt, ("project", "messages", "digest"), rows)

    assert len(set(ids)) == Prompt.objects.filter(project=project).count() == 25_000
