"""python manage.py import_gold PROJECT FILE --use qualification"""

import argparse
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from annotate.errors import AnnotateError
from annotate.gold import import_gold
from annotate.models import Gold, Project


class Command(BaseCommand):
    help = (
        "Import comparisons with known answers into a project: a file as import_data reads it, its rankings are right."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("project", help="the project's name")
        parser.add_argument("file", type=Path, help="rows with rankings; meta.explanation may say why")
        parser.add_argument("--use", choices=Gold.Use.values, default=Gold.Use.MIXED, help="how they are asked (mixed)")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(name=options["project"]).first()
        if project is None:
            names = ", ".join(Project.objects.values_list("name", flat=True)) or "none yet"
            raise CommandError(f"There is no project {options['project']!r}; there are: {names}")
        try:
            num_rows = import_gold(project=project, path=options["file"], use=options["use"])
        except AnnotateError as error:
            raise CommandError(f"{error}\nNothing was imported.") from error
        self.stdout.write(f"{project}: {num_rows} comparisons with a known answer")
