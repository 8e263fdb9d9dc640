"""Small real objects for tests: each call makes what it needs, and takes what the test cares about."""

import itertools
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.contrib.auth.models import User
from django.utils import timezone

from annotate import services
from annotate.identity import comparison_digest
from annotate.models import Annotator, Comparison, Judgment, Lease, Membership, Option, Project, Prompt, Response

_numbers = itertools.count(1)


def make_user(**values: Any) -> User:
    number = next(_numbers)
    values = {"username": f"user{number}", "password": "a long passphrase", **values}
    return User.objects.create_user(**values)


def make_annotator(*, user: User | None = None) -> Annotator:
    return services.annotator_for(user=user or make_user())


def make_project(*, members: tuple[User, ...] = (), **values: Any) -> Project:
    project = Project.objects.create(**{"name": f"project {next(_numbers)}", **values})
    for user in members:
        Membership.objects.create(project=project, user=user)
    return project


def make_prompt(*, project: Project | None = None, messages: list[dict[str, str]] | None = None) -> Prompt:
    messages = messages or [{"role": "user", "content": f"Question {next(_numbers)}?"}]
    return Prompt.objects.create(project=project or make_project(), messages=messages)


def make_comparison(
    *,
    k: int = 2,
    project: Project | None = None,
    prompt: Prompt | None = None,
    contents: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    **values: Any,
) -> Comparison:
    """A comparison of `k` responses, or of those in `contents`; it wants what its project's overlap says."""
    prompt = prompt or make_prompt(project=project)
    contents = contents or tuple(f"Answer {next(_numbers)}." for _ in range(k))
    models = models or tuple(f"model-{place}" for place in range(len(contents)))
    answers = list(zip(contents, models, strict=True))
    responses = [
        Response.objects.create(
            prompt=prompt, content=content, model=model, copy=answers[:place].count((content, model))
        )
        for place, (content, model) in enumerate(answers)
    ]
    comparison = Comparison.objects.create(
        project=prompt.project,
        prompt=prompt,
        digest=comparison_digest(prompt.digest, [response.digest for response in responses]),
        num_responses=len(responses),
        **{"num_wanted": prompt.project.overlap, **values},
    )
    for position, response in enumerate(responses):
        Option.objects.create(comparison=comparison, response=response, position=position)
    return comparison


def response_ids(comparison: Comparison) -> list[int]:
    """In the order of the source."""
    return list(comparison.options.values_list("response_id", flat=True))


def make_lease(*, comparison: Comparison | None = None, annotator: Annotator | None = None) -> Lease:
    """A live lease on the next comparison of the project, which is `comparison` if that is all it has."""
    comparison = comparison or make_comparison()
    lease = services.lease_next(project=comparison.project, annotator=annotator or make_annotator())
    assert lease is not None, "nothing is open to this annotator"
    return lease


def make_judgment(
    *,
    comparison: Comparison | None = None,
    annotator: Annotator | None = None,
    order: list[list[int]] | None = None,
    **values: Any,
) -> Judgment:
    """A judgment made in the browser; `order` ranks places in the source's order, best first (as listed, if none)."""
    comparison = comparison or make_comparison()
    annotator = annotator or make_annotator()
    ids = response_ids(comparison)
    groups = order if order is not None else [[place] for place in range(len(ids))]
    if not Lease.objects.filter(comparison=comparison, annotator=annotator).exists():
        _lease(comparison, annotator)
    return services.record_judgment(
        comparison=comparison,
        annotator=annotator,
        ranking=[[ids[place] for place in group] for group in groups],
        **{"key": uuid4(), "source": Judgment.Source.BROWSER, "seconds": 12.5, **values},
    )


def _lease(comparison: Comparison, annotator: Annotator) -> None:
    """A lease on this very comparison; its number of wanted judgments grows where it is full."""
    comparison.refresh_from_db()
    comparison.num_taken += 1
    comparison.num_wanted = max(comparison.num_wanted, comparison.num_taken)
    comparison.save()
    Lease.objects.create(
        comparison=comparison,
        project=comparison.project,
        annotator=annotator,
        shown_order=response_ids(comparison),
        expires_at=timezone.now() + timedelta(minutes=15),
    )
