"""Make comparisons of the most informative pairs, as the project's newest run that guides annotation scored them."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from training import guidance, references
from training.alignment.config import ConfigError
from training.models import TrainingRun


class Command(BaseCommand):
    help = (
        "Make comparisons of two responses to one prompt each, the most informative pairs by the scores of the "
        "project's newest run of kind score_comparisons; then order all open comparisons."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project")
        parser.add_argument("--number", type=int, default=100, help="how many comparisons to make (default 100)")

    def handle(self, *, project: str, number: int, **options: Any) -> None:
        if number < 1:
            raise CommandError("--number: make one comparison or more")
        try:
            run = _newest_run(project)
            num_pairs = guidance.propose_pairs(run, number)
            num_ordered = guidance.prioritise(run)
        except (ConfigError, guidance.CannotGuide) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{num_pairs} new comparisons by the scores of {run}; {num_ordered} open ones in order.")


def _newest_run(project: str) -> TrainingRun:
    runs = TrainingRun.objects.filter(
        project=references.resolve_project(project),
        kind=TrainingRun.Kind.SCORE_COMPARISONS,
        status=TrainingRun.Status.SUCCEEDED,
    )
    if run := runs.select_related("project").first():
        return run
    raise ConfigError(f"project: no run of kind score_comparisons has scored {project} yet")
