"""What the environment makes of the settings, each in a fresh interpreter."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from config.home import BASE_DIR


def settings(home: Path, *names: str, **environment: str) -> dict[str, Any]:
    values = f"{{name: getattr(settings, name) for name in {names!r}}}"
    program = f"import json; from config import settings; print(json.dumps({values}, default=str))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=BASE_DIR,
        env={"PLUMBLINE_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_without_variables_everything_is_embedded(tmp_path):
    found = settings(tmp_path / "home", "DATABASES", "CELERY_BROKER_URL", "STATIC_ROOT", "RUNS_DIR", "DEBUG")
    pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=67108864;"
    assert found == {
        "DATABASES": {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": f"{tmp_path}/home/db.sqlite3",
                "CONN_MAX_AGE": 60,
                "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": pragmas},
            }
        },
        "CELERY_BROKER_URL": f"redis+socket://{tmp_path}/home/redis/redis.sock",
        "STATIC_ROOT": f"{tmp_path}/home/static",
        "RUNS_DIR": f"{tmp_path}/home/runs",
        "DEBUG": False,
    }
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_a_variable_names_the_keys_that_judges_may_get(tmp_path):
    assert settings(tmp_path, "JUDGE_KEYS") == {"JUDGE_KEYS": "{'OPENAI_API_KEY'}"}
    assert settings(tmp_path, "JUDGE_KEYS", PLUMBLINE_JUDGE_KEYS=" A_KEY,")["JUDGE_KEYS"] == "{'A_KEY'}"


def test_variables_name_a_database_and_a_redis(tmp_path):
    urls = {"DATABASE_URL": "postgresql://me:word@db:5433/plumb", "REDIS_URL": "redis://:word@queue:6380/2"}
    found = settings(tmp_path, "DATABASES", "CELERY_BROKER_URL", **urls)
    assert found["CELERY_BROKER_URL"] == "redis://:word@queue:6380/2"
    expected = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "plumb",
        "USER": "me",
        "PASSWORD": "word",
        "HOST": "db",
        "PORT": 5433,
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }
    assert {name: found["DATABASES"]["default"][name] for name in expected} == expected


def test_hosts_are_this_machine_and_what_is_named(tmp_path):
    found = settings(tmp_path, "ALLOWED_HOSTS", "CSRF_TRUSTED_ORIGINS", HOST="0.0.0.0", ALLOWED_HOSTS="a.org, b.org")
    assert found == {
        "ALLOWED_HOSTS": ["127.0.0.1", "localhost", "[::1]", "a.org", "b.org"],
        "CSRF_TRUSTED_ORIGINS": ["https://a.org", "https://b.org"],
    }


def test_cookies_are_secure_behind_https(tmp_path):
    names = ("SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "SECURE_SSL_REDIRECT", "SECURE_HSTS_SECONDS")
    assert list(settings(tmp_path, *names).values()) == [False, False, False, 0]
    assert list(settings(tmp_path, *names, PLUMBLINE_HTTPS="1").values()) == [True, True, True, 31536000]


def test_short_secret_key_is_refused(tmp_path):
    command = [sys.executable, "-c", "from config import settings"]
    environment = {"PLUMBLINE_HOME": str(tmp_path), "SECRET_KEY": "short"}
    done = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("ImproperlyConfigured: SECRET_KEY must have at least 50 characters.")
