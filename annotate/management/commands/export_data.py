"""python manage.py export_data PROJECT FORMAT OUT"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from annotate.errors import AnnotateError
from annotate.formats import FORMATS, jsonl
from annotate.models import Project
from annotate.queries import judgment_rows


class Command(BaseCommand):
    help = "Write a project's judgments as JSONL: whole or not at all, and compressed where OUT ends in .gz."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("project", help="the project's name")
        parser.add_argument("format", choices=sorted(FORMATS))
        parser.add_argument("out", help="a file, or - for standard output")
        parser.add_argument("--aspect", help="only judgments of this aspect (default: all)")
        parser.add_argument(
            "--with-gold", action="store_true", help="also comparisons with a known answer, which meta.gold then holds"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.filter(name=options["project"]).first()
        if project is None:
            names = ", ".join(Project.objects.values_list("name", flat=True)) or "none yet"
            raise CommandError(f"There is no project {options['project']!r}; there are: {names}")
        try:
            told = judgment_rows(project, aspect=options["aspect"], with_gold=options["with_gold"])
            with closing(told) as rows:
                num_lines = self._write(options["out"], FORMATS[options["format"]](rows))
        except AnnotateError as error:
            raise CommandError(str(error)) from error
        self.stderr.write(f"{project}: wrote {num_lines} rows to {options['out']}", self.style.SUCCESS)

    def _write(self, out: str, lines: Iterator[str]) -> int:
        if out != "-":
            return jsonl.write_whole(Path(out), lines)
        try:
            num_lines = jsonl.write_lines(sys.stdout.buffer, lines)
            sys.stdout.flush()
        except BrokenPipeError as error:  # as in: export_data … - | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise CommandError("The reader went away.") from error
        return num_lines
