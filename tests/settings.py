"""Settings of the test suite: the real ones, with its own home and a fast password hasher."""

import os
import tempfile

os.environ.setdefault("PLUMBLINE_HOME", tempfile.mkdtemp(prefix="plumbline-test-"))

from config.settings import *  # noqa: F403
from config.settings import DATABASES, HOME

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_connect_timeout": 0.2}
STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # noqa: F405 -- WhiteNoise warns of a missing one
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # A file, as in use: a page asks for several things at once, and a database in memory has one connection for all.
    DATABASES["default"]["TEST"] = {"NAME": HOME / "test.sqlite3"}
    DATABASES["default"]["OPTIONS"]["init_command"] = "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
