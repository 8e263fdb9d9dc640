"""Static files as they are served: collected once, under names that hold their digest."""

import gzip
import re
from pathlib import Path

import pytest
from django.core.management import call_command

from tests import factories


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


@pytest.mark.django_db
def test_the_judging_page_and_all_that_it_loads_are_under_100_kilobytes(collected, client):
    """The most widely used peer's page has 1.9 MB."""
    annotator = factories.make_annotator()
    lease = factories.make_lease(comparison=factories.make_comparison(k=4), annotator=annotator)
    client.force_login(annotator.user)

    page = client.get(f"/comparisons/{lease.comparison_id}/").content
    catalogue = client.get("/jsi18n/en/").content
    loaded = linked(page.decode(), collected)

    kilobytes = (sum(len(gzip.compress(path.read_bytes())) for path in loaded) + compressed(page, catalogue)) / 1000
    names = {re.sub(r"\.[0-9a-f]{12}", "", path.name) for path in loaded}
    assert names >= {"site.css", "compare.css", "compare.js", "page.js", "outbox.js", "Sortable.min.js"}
    assert kilobytes < 100


def compressed(*texts: bytes) -> int:
    return sum(len(gzip.compress(text)) for text in texts)


def linked(html: str, root: Path) -> set[Path]:
    """The static files that a page loads, and what they import."""
    found, new = set(), [root / name for name in re.findall(r'(?:href|src)="/static/([^"]+)"', html)]
    while new:
        path = new.pop().resolve()
        if path not in found:
            found.add(path)
            imports = re.findall(r'from "(\./[^"]+)"', path.read_text()) if path.suffix == ".js" else []
            new += [path.parent / name for name in imports]
    return found
