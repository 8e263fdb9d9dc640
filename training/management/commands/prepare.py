"""Bring an installation up to date: database, static files and, at first start, accounts and the demonstration."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from training.installation import InstallationError, accounts_file, install


class Command(BaseCommand):
    help = __doc__
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        os.umask(0o077)  # whatever is kept is its owner's
        call_command("migrate", verbosity=0, interactive=False)
        collect_static()
        logging.disable(logging.WARNING)  # no broker yet: the sweeper will start the run that is queued here
        try:
            accounts = install(with_demonstration=os.environ.get("PLUMBLINE_DEMO", "1") != "0")
        except InstallationError as error:
            raise CommandError(str(error)) from error
        finally:
            logging.disable(logging.NOTSET)
        if accounts:
            self.stdout.write(f"First start. These accounts were made; {accounts_file()} keeps them:")
            self.stdout.writelines(f"  {account}\n" for account in accounts)


def collect_static() -> None:
    """Collect the static files, unless they were collected from the same sources before."""
    stamp, digest = Path(settings.STATIC_ROOT).with_suffix(".digest"), sources_digest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    call_command("collectstatic", verbosity=0, interactive=False)
    stamp.write_text(digest)


def sources_digest() -> str:
    """Our own static files, and the pins of the packages that bring the others."""
    names = ("requirements.txt", "package-lock.json")
    sources = [settings.BASE_DIR / name for name in names] + sorted((settings.BASE_DIR / "static").rglob("*"))
    digest = hashlib.sha256()
    for path in sources:
        if path.is_file():
            digest.update(
                f"{path.relative_to(settings.BASE_DIR)}\0{path.stat().st_size}\0".encode() + path.read_bytes()
            )
    return digest.hexdigest()
