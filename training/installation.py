"""The first start of an installation: its accounts, the staff group, the demonstration and its base model.

All of it is one transaction, and it happens once: an installation that has accounts is left as it is.
"""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from django.contrib.auth.models import Group, Permission, User
from django.db import transaction
from django.db.models import QuerySet

from annotate import services as annotate_services
from annotate.demonstration.recipes import sft_examples
from config.home import HOME, private_file
from training import services

ML_STAFF = "ML staff"
ROLES = {"admin": "administrator", "staff": ML_STAFF, "annotator": "annotator"}
BASE_MODEL = "demo-base"
NUM_EXAMPLES = 16000
BASE_VALUES = {"policy": "new:tiny", "learning_rate": 4e-3, "max_length": 512}  # some four minutes on two cores


class InstallationError(Exception):
    """The installation's own files contradict each other; the message says what to do."""


@dataclass(frozen=True)
class Account:
    username: str
    password: str

    def __str__(self) -> str:
        return f"{self.username:<10} {self.password}  ({ROLES[self.username]})"


@transaction.atomic
def install(*, with_demonstration: bool) -> list[Account]:
    """Make the first accounts and the demonstration; an empty list if there are accounts already.

    Then only the staff group gets what a later version added.
    """
    if User.objects.exists():
        permit_new_models()
        return []
    accounts = first_accounts()
    for account in accounts:
        create_user(account)
    if with_demonstration:
        annotate_services.seed_demonstration()
        values = {**BASE_VALUES, "examples": str(write_examples())}
        services.create_run(kind="sft", name=BASE_MODEL, values=values)
    return accounts


def accounts_file() -> Path:
    return HOME / "accounts.txt"


def first_accounts() -> list[Account]:
    """Draw passwords and keep them in a private file before any account exists, so that none is ever lost.

    A file that an interrupted first start left behind decides.
    """
    drawn = [Account(name, secrets.token_urlsafe(12)) for name in ROLES]
    lines = private_file(accounts_file(), "".join(f"{account}\n" for account in drawn)).splitlines()
    kept = [Account(*line.split()[:2]) for line in lines if len(line.split()) > 1]
    if [account.username for account in kept] != list(ROLES):
        raise InstallationError(f"{accounts_file()} does not list {', '.join(ROLES)}. Move it away and start again.")
    return kept


def create_user(account: Account) -> None:
    if account.username == "admin":
        User.objects.create_superuser(account.username, password=account.password)
        return
    user = User.objects.create_user(account.username, password=account.password)
    if account.username == "staff":
        user.is_staff = True
        user.save(update_fields=["is_staff"])
        user.groups.add(ml_staff())


def ml_staff() -> Group:
    """Those who run projects and training: everything in the two apps, nothing about accounts."""
    group, _ = Group.objects.get_or_create(name=ML_STAFF)
    group.permissions.set(_of_both_apps())
    return group


def permit_new_models() -> None:
    """Let the staff group work with models of which it knows nothing yet; what it was denied of others stays denied."""
    for group in Group.objects.filter(name=ML_STAFF):
        known = group.permissions.values("content_type")
        group.permissions.add(*_of_both_apps().exclude(content_type__in=known))


def _of_both_apps() -> QuerySet[Permission]:
    return Permission.objects.filter(content_type__app_label__in=("annotate", "training"))


def write_examples() -> Path:
    """What the demonstration's base model learns to write."""
    path = HOME / "demonstration" / "examples.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for example in sft_examples(seed=0, n=NUM_EXAMPLES):
            file.write(json.dumps(example, ensure_ascii=False) + "\n")
    return path
