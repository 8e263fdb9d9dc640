"""python manage.py import_data PROJECT FILE"""

import argparse
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from annotate import services
from annotate.errors import AnnotateError


class Command(BaseCommand):
    help = "Import a JSONL file (also .jsonl.gz) into a project, which is made if it is missing. All of it or nothing."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("project", help="the project's name")
        parser.add_argument("file", type=Path, help="rows of rankings, or TRL rows of chosen and rejected")
        parser.add_argument("--overlap", type=_positive, help="of a new project: judgments wanted for each comparison")
        parser.add_argument("--closed", action="store_true", help="of a new project: only its members may judge")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            project, report = services.import_into(
                name=options["project"],
                path=options["file"],
                overlap=options["overlap"],
                is_closed=options["closed"],
            )
        except AnnotateError as error:
            raise CommandError(f"{error}\nNothing was imported.") from error
        self.stdout.write(
            f"{project}: read {report.rows} rows; new: {report.prompts} prompts, {report.responses} responses, "
            f"{report.comparisons} comparisons, {report.judgments} judgments; {report.already_there} rows added nothing"
        )


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
