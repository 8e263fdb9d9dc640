"""Whatever happens in whatever order, a comparison's places are its live leases and its counted annotators."""

import random
from datetime import timedelta

import pytest
from django.utils import timezone

from annotate import services
from annotate.formats import read_row
from annotate.models import Judgment, Lease, Skip
from tests.factories import make_annotator, make_comparison, make_project

pytestmark = pytest.mark.django_db

NUM_STEPS = 150


class Office:
    """Four people, five comparisons and a clock; each step is one thing that may happen."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.project = make_project(overlap=2)
        self.comparisons = [make_comparison(project=self.project, k=self.rng.choice((2, 3))) for _ in range(5)]
        self.people = [make_annotator() for _ in range(4)]
        self.pages = []  # leases as their pages remember them, live or not
        self.now = timezone.now()
        self.num_imported = 0

    def open_page(self):
        lease = services.lease_next(project=self.project, annotator=self.rng.choice(self.people), now=self.now)
        if lease:
            self.pages.append(lease)

    def submit(self):
        if self.pages:
            lease = self.rng.choice(self.pages)
            services.record_judgment(
                comparison=lease.comparison,
                annotator=lease.annotator,
                ranking=[lease.shown_order],
                key=lease.key,
                source="browser",
            )

    def skip(self):
        if self.pages:
            lease = self.rng.choice(self.pages)
            services.skip_comparison(comparison=lease.comparison, annotator=lease.annotator)

    def wait(self):
        self.now += timedelta(minutes=self.rng.choice((1, 10)))

    def import_one(self):
        comparison = self.rng.choice(self.comparisons)
        responses = [{"content": one.content, "model": one.model} for one in comparison.responses.all()]
        values = {"prompt": comparison.prompt.messages, "responses": responses, "ranking": [[*range(len(responses))]]}
        self.num_imported += 1
        values |= {"id": self.num_imported, "annotator": self.rng.choice(("w1", "w2", None))}
        services.import_rows(project=self.project, rows=[read_row(1, values)])

    def step(self):
        steps = (self.open_page, self.submit, self.skip, self.wait, self.import_one)
        self.rng.choices(steps, weights=(6, 4, 1, 3, 0.3))[0]()

    def check(self):
        for comparison in self.project.comparisons.all():
            leases = Lease.objects.filter(comparison=comparison).count()
            counted = Judgment.objects.filter(comparison=comparison, is_extra=False)
            assert comparison.num_taken == leases + counted.values("annotator").distinct().count()
            assert comparison.num_taken <= comparison.num_wanted
        live = Lease.objects.filter(expires_at__gt=self.now).values_list("annotator", flat=True)
        assert len(set(live)) == len(live)


@pytest.mark.parametrize("seed", range(4))
def test_places_always_add_up(seed):
    office = Office(seed)
    for _ in range(NUM_STEPS):
        office.step()
        office.check()
    assert Judgment.objects.filter(is_extra=False).count() > 5
    assert Skip.objects.count() > 0
