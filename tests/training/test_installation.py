import json
import os
import stat
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command

from annotate.models import Project
from training import installation
from training.management.commands import prepare
from training.models import TrainingRun


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(installation, "HOME", tmp_path)
    return tmp_path


def passwords(home: Path) -> dict[str, str]:
    return dict(line.split()[:2] for line in (home / "accounts.txt").read_text().splitlines())


@pytest.mark.django_db
def test_install_makes_three_accounts_that_only_their_owner_can_read(home):
    accounts = installation.install(with_demonstration=False)
    assert {account.username: account.password for account in accounts} == passwords(home)
    assert stat.S_IMODE((home / "accounts.txt").stat().st_mode) == 0o600
    rights = {
        user.username: (user.is_superuser, user.is_staff, [group.name for group in user.groups.all()])
        for user in User.objects.all()
    }
    assert rights == {
        "admin": (True, True, []),
        "staff": (False, True, ["ML staff"]),
        "annotator": (False, False, []),
    }
    assert [user.check_password(passwords(home)[user.username]) for user in User.objects.all()] == [True, True, True]


@pytest.mark.django_db
def test_install_happens_once(home):
    installation.install(with_demonstration=False)
    User.objects.get(username="annotator").delete()
    assert installation.install(with_demonstration=True) == []
    assert list(User.objects.order_by("username").values_list("username", flat=True)) == ["admin", "staff"]
    assert Project.objects.count() == 0


@pytest.mark.django_db
def test_install_draws_other_passwords_each_time(home):
    first = [account.password for account in installation.install(with_demonstration=False)]
    User.objects.all().delete()
    (home / "accounts.txt").unlink()
    second = [account.password for account in installation.install(with_demonstration=False)]
    assert len({*first, *second}) == 6
    assert min(map(len, first)) >= 16


@pytest.mark.django_db
def test_install_takes_up_the_passwords_of_an_interrupted_first_start(home):
    kept = installation.first_accounts()
    assert installation.install(with_demonstration=False) == kept


@pytest.mark.django_db
def test_install_refuses_a_file_that_lists_other_accounts(home):
    (home / "accounts.txt").write_text("admin secret-word (administrator)\n")
    with pytest.raises(installation.InstallationError, match=r"does not list admin, staff, annotator\. Move it away"):
        installation.install(with_demonstration=False)
    assert User.objects.count() == 0


@pytest.mark.django_db
def test_ml_staff_may_do_everything_in_the_two_apps_and_nothing_else():
    installation.install(with_demonstration=False)
    of_apps = Permission.objects.filter(content_type__app_label__in=["annotate", "training"])
    assert set(Group.objects.get(name="ML staff").permissions.all()) == set(of_apps)
    assert User.objects.get(username="staff").has_perm("annotate.view_project")
    assert not User.objects.get(username="staff").has_perm("auth.view_user")


@pytest.mark.django_db
def test_a_later_version_permits_its_new_models_and_gives_nothing_back():
    installation.install(with_demonstration=False)
    group = Group.objects.get(name="ML staff")
    of_both = set(group.permissions.all())
    denied = Permission.objects.get(codename="delete_judgment")
    group.permissions.remove(denied, *Permission.objects.filter(content_type__model="promotion"))

    installation.install(with_demonstration=False)

    assert set(group.permissions.all()) == of_both - {denied}


@pytest.mark.django_db
def test_install_seeds_the_demonstration_and_queues_its_base_model(home, monkeypatch):
    monkeypatch.setattr(installation, "NUM_EXAMPLES", 100)
    installation.install(with_demonstration=True)
    assert Project.objects.get().is_demonstration
    run = TrainingRun.objects.get()
    assert (run.kind, run.name, run.status) == ("sft", "demo-base", "queued")
    assert installation.BASE_VALUES.items() <= run.config.items()
    examples = [json.loads(line) for line in Path(run.config["examples"]).read_text().splitlines()]
    assert [set(example) for example in examples] == [{"prompt", "completion"}] * 100


@pytest.mark.django_db
def test_prepare_says_the_accounts_once_and_collects_static_files_once(home, settings, monkeypatch, capsys):
    monkeypatch.setenv("PLUMBLINE_DEMO", "0")
    settings.STATIC_ROOT = home / "static"
    umask = os.umask(0o022)
    try:
        call_command("prepare")
        page = settings.STATIC_ROOT / "annotate" / "site.css"
        page.unlink()
        call_command("prepare")
    finally:
        os.umask(umask)
    assert capsys.readouterr().out.splitlines() == [
        f"First start. These accounts were made; {home}/accounts.txt keeps them:",
        *(f"  {line}" for line in (home / "accounts.txt").read_text().splitlines()),
    ]
    assert not page.exists()


def test_sources_digest_follows_our_static_files(tmp_path, settings):
    settings.BASE_DIR = tmp_path
    for name in ("requirements.txt", "package-lock.json"):
        (tmp_path / name).touch()
    (tmp_path / "static").mkdir()
    digests = [prepare.sources_digest()]
    for content in ("a", "b"):
        (tmp_path / "static" / "site.css").write_text(content)
        digests.append(prepare.sources_digest())
    (tmp_path / "static" / "site.css").rename(tmp_path / "static" / "page.css")
    digests.append(prepare.sources_digest())
    assert len(set(digests)) == 4
    assert prepare.sources_digest() == digests[-1]
