"""The German catalogue is complete and current. After a change of texts, with gettext's tools installed:

manage.py makemessages --locale de --no-obsolete --no-wrap --ignore 'training/*' --ignore 'templates/admin/*' …
manage.py makemessages --domain djangojs --locale de --no-obsolete --no-wrap --ignore 'static/training/*' …
manage.py compilemessages --locale de
"""

import gettext
import re

import polib
import pytest
from django.test import Client
from django.urls import reverse

from config.home import BASE_DIR
from tests import factories

FOLDER = BASE_DIR / "locale" / "de" / "LC_MESSAGES"
PLACEHOLDER = re.compile(r"%\(\w+\)s|%%")
LITERAL = r'"((?:[^"\\]|\\.)*)"'


def catalogue(domain):
    return polib.pofile(str(FOLDER / f"{domain}.po"))


def texts(*patterns):
    return [path.read_text(encoding="utf-8") for pattern in patterns for path in sorted(BASE_DIR.glob(pattern))]


@pytest.mark.parametrize("domain", ["django", "djangojs"])
def test_every_text_has_a_translation_with_the_same_placeholders(domain):
    for entry in catalogue(domain):
        told = list(entry.msgstr_plural.values()) if entry.msgid_plural else [entry.msgstr]
        wanted = set(PLACEHOLDER.findall(entry.msgid_plural or entry.msgid))
        assert all(told), entry.msgid
        assert not entry.fuzzy, entry.msgid
        assert set(PLACEHOLDER.findall(told[-1])) == wanted, entry.msgid


@pytest.mark.parametrize("domain", ["django", "djangojs"])
def test_what_is_read_is_what_is_written(domain):
    with (FOLDER / f"{domain}.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for entry in catalogue(domain):
        if entry.msgctxt:
            assert compiled.pgettext(entry.msgctxt, entry.msgid) == entry.msgstr
        elif entry.msgid_plural:
            numbers = [compiled.ngettext(entry.msgid, entry.msgid_plural, number) for number in (1, 2)]
            assert numbers == list(entry.msgstr_plural.values())
        else:
            assert compiled.gettext(entry.msgid) == entry.msgstr


@pytest.mark.parametrize(
    ("domain", "pattern", "files"),
    [
        (
            "django",
            rf"\{{% translate {LITERAL}",
            ("templates/annotate/**/*.html", "templates/registration/*.html", "templates/base.html"),
        ),
        ("django", rf"\b(?:_|gettext|gettext_lazy)\(\s*{LITERAL}\s*\)", ("annotate/*.py",)),
        ("djangojs", rf"\bn?gettext\(\s*{LITERAL}", ("static/annotate/**/*.js",)),
    ],
)
def test_every_text_of_the_code_is_in_the_catalogue(domain, pattern, files):
    known = {entry.msgid.replace("%%", "%") for entry in catalogue(domain)}  # templates are extracted with %%
    used = {found.replace("%%", "%") for text in texts(*files) for found in re.findall(pattern, text)}
    assert len(used) > 50
    assert used - known == set()


@pytest.mark.django_db
def test_a_page_speaks_german_to_who_asks_for_it():
    client = Client(headers={"Accept-Language": "de"})
    annotator = factories.make_annotator()
    client.force_login(annotator.user)
    lease = factories.make_lease(annotator=annotator)

    page = client.get(reverse("annotate:comparison", args=[lease.comparison_id])).content.decode()
    script = client.get("/jsi18n/de/").content.decode()

    assert '<html lang="de" dir="ltr">' in page
    for words in ("Welche Antwort ist besser?", "A viel besser", "Überspringen", "Melden", "Abmelden"):
        assert words in page
    assert "A much better" not in page
    assert "Ihre Reihenfolge" in script
