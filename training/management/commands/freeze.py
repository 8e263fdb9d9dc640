"""Freeze a project's judgments into a preference set."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from annotate.models import Project
from training import queries, services


class Command(BaseCommand):
    help = "Make an immutable preference set of a project's judgments, split by prompt: freeze PROJECT NAME"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project")
        parser.add_argument("name")
        parser.add_argument("--seed", type=int, default=0, help="draws which prompts go into which split")
        parser.add_argument(
            "--fractions",
            type=_fractions,
            default=services.FRACTIONS,
            metavar="TRAIN,VALIDATION,TEST[,GUARD]",
            help="shares of the prompts; the guard's votes are set aside for rewards that watch a policy's training "
            f"(default: {','.join(map(str, services.FRACTIONS))})",
        )
        parser.add_argument(
            "--weighted",
            action="store_true",
            help="tell each judgment its annotator's reliability, for annotators=weights",
        )

    def handle(
        self, *, project: str, name: str, seed: int, fractions: list[float], weighted: bool, **options: Any
    ) -> None:
        found = Project.objects.filter(name=project).first()
        if found is None:
            raise CommandError(f"There is no project {project}.")
        try:
            frozen = services.freeze(project=found, name=name, seed=seed, fractions=fractions, is_weighted=weighted)
        except services.CannotFreeze as error:
            raise CommandError(str(error)) from error
        for split, counts in frozen.counts.items():
            figures = ", ".join(f"{number} {what}" for what, number in counts.items())
            self.stdout.write(f"{split:<10}  {figures}")
        if empty := queries.empty_splits(frozen):
            self.stdout.write(f"No prompt fell into {' and '.join(empty)}: there are few, or its share is small.")
        self.stdout.write(f"digest      {frozen.digest}")
        self.stdout.write(f"Preference set {frozen}: {frozen.path}")


def _fractions(text: str) -> list[float]:
    return [float(share) for share in text.split(",")]
