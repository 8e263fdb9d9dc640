"""python manage.py simulate_annotators PROJECT --judgments 400 --noise 0.1"""

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from annotate import services
from annotate.errors import AnnotateError
from annotate.models import Project

PROGRESS_EVERY = 50


class Command(BaseCommand):
    help = "Let simulated annotators judge a demonstration project; their judgments are marked as simulated everywhere."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("project", help="the project's name")
        parser.add_argument("--judgments", type=_positive, default=400, help="how many to make at the most (400)")
        parser.add_argument(
            "--noise",
            type=_not_negative,
            default=0.1,
            help="standard deviation of their error on a quality 0 to 1 (0.1)",
        )
        parser.add_argument("--annotators", type=_positive, default=5, help="how many of them judge in turn (5)")
        parser.add_argument("--seed", type=int, default=0)

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(name=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']!r}.")
        wanted = options["judgments"]

        def progress(num_made: int) -> None:
            if num_made % PROGRESS_EVERY == 0 and num_made < wanted:
                self.stdout.write(f"{num_made} of {wanted}")

        try:
            num_made = services.simulate_judgments(
                project=project,
                num_judgments=wanted,
                noise=options["noise"],
                num_annotators=options["annotators"],
                seed=options["seed"],
                progress=progress,
            )
        except AnnotateError as error:
            raise CommandError(str(error)) from error
        rest = "" if num_made == wanted else f" of {wanted}: nothing else is open to {options['annotators']} annotators"
        self.stdout.write(f"{project}: made {num_made} simulated judgments{rest}")


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _not_negative(text: str) -> float:
    if not 0 <= (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("must not be negative")
    return value
