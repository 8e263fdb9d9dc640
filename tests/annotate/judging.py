"""A process of its own that judges until nothing is left; `test_concurrency.py` starts several at once.

Every submit is sent twice, some are slow, some comparisons are fetched ahead as the page does, and some calls believe
that it is tomorrow, so that they take the leases of others for expired. Prints one JSON line: the keys of all
judgments that were acknowledged.
"""

import json
import random
import sys
import time
from datetime import timedelta

import django


def main(username: str, seed: int) -> None:
    django.setup()
    from django.contrib.auth.models import User  # noqa: PLC0415 -- after setup
    from django.utils import timezone  # noqa: PLC0415

    from annotate import services  # noqa: PLC0415
    from annotate.models import Project  # noqa: PLC0415

    rng = random.Random(seed)
    project = Project.objects.get()
    annotator = services.annotator_for(user=User.objects.get_or_create(username=username)[0])
    acknowledged: dict[str, int] = {}
    while lease := services.lease_next(project=project, annotator=annotator, now=_now(timezone.now(), rng)):
        if rng.random() < 0.5:
            services.lease_next(project=project, annotator=annotator, besides=[lease.comparison_id])
        time.sleep(rng.choice((0, 0, 0.02)))
        ranking = [[pk] for pk in rng.sample(lease.shown_order, len(lease.shown_order))]
        for _ in range(2):
            judgment = services.record_judgment(
                comparison=lease.comparison, annotator=annotator, ranking=ranking, key=lease.key, source="browser"
            )
            acknowledged[str(judgment.key)] = judgment.pk
    sys.stdout.write(json.dumps(acknowledged))


def _now(now: "object", rng: random.Random) -> "object":
    return now + timedelta(days=1) if rng.random() < 0.1 else now


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
