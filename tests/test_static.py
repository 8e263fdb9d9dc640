"""Static files as they are served: collected once, under names that hold their digest."""

import re
from pathlib import Path

import pytest
from django.core.management import call_command


@pytest.fixture(scope="module")
def static_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("static")


@pytest.fixture
def collected(settings, static_root) -> Path:
    storages = {**settings.STORAGES, "staticfiles": {"BACKEND": "config.storage.StaticFilesStorage"}}
    settings.STORAGES = storages
    settings.STATIC_ROOT = static_root
    if not (static_root / "staticfiles.json").exists():
        call_command("collectstatic", interactive=False, verbosity=0)
    return static_root


def test_scripts_import_one_another_by_names_with_digests(collected):
    imports = {
        script.parent / name
        for script in (collected / "annotate").rglob("*.????????????.js")
        for name in re.findall(r'from "(\./[^"]+)"', script.read_text())
    }

    assert imports
    assert {path for path in imports if not path.exists() or not re.search(r"\.[0-9a-f]{12}\.js$", path.name)} == set()
