"""All settings. Whatever differs between deployments is an environment variable:

PLUMBLINE_HOME   where all state is kept                      (default: var/ beside this project)
DATABASE_URL     a PostgreSQL database                        (default: SQLite in PLUMBLINE_HOME)
REDIS_URL        a Redis server                               (default: the embedded one)
SECRET_KEY       at least 50 characters                       (default: made at first start, kept 0600)
HOST, PORT       where the web server listens                 (default: 127.0.0.1 and 8000)
ALLOWED_HOSTS    further host names, separated by commas
PLUMBLINE_HTTPS  1 behind a TLS proxy: secure cookies, HSTS   (default: 0)
PLUMBLINE_DEMO   0: a first start without the demonstration   (default: 1; training/management/commands/prepare.py)
PLUMBLINE_JUDGE_KEYS  variables whose values judges' servers may get, separated by commas
                                                              (default: OPENAI_API_KEY; training/reward_folders.py)
IMPORT_MAX_MB    largest file that the web server imports     (default: 2048)
WEB_CONCURRENCY  processes of the web server                  (default: 2; config/gunicorn.py)
"""

import os
from typing import Any

import dj_database_url
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from config.home import BASE_DIR, HOME, redis_url, secret_key

HOME.mkdir(mode=0o700, parents=True, exist_ok=True)

DEBUG = False
SECRET_KEY = secret_key()
if len(SECRET_KEY) < 50:
    raise ImproperlyConfigured("SECRET_KEY must have at least 50 characters.")

HOST = os.environ.get("HOST", "127.0.0.1")
PORT = int(os.environ.get("PORT", "8000"))
IS_HTTPS = os.environ.get("PLUMBLINE_HTTPS", "0") == "1"
EXTRA_HOSTS = [name.strip() for name in os.environ.get("ALLOWED_HOSTS", "").split(",") if name.strip()]
ANY_ADDRESS = {"0.0.0.0", "::"}  # noqa: S104 -- what to listen on, never a name to be called by
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", *({HOST} - ANY_ADDRESS), *EXTRA_HOSTS]
CSRF_TRUSTED_ORIGINS = [f"https://{name}" for name in EXTRA_HOSTS]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "csp",
    "django_htmx",
    "annotate",
    "training",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "django.template.context_processors.i18n",
            ]
        },
    }
]

# Databases: the same code on both. SQLite takes its write lock when a transaction begins, so that two
# writers queue up instead of failing half way.
DATABASES: dict[str, Any]
if os.environ.get("DATABASE_URL"):
    DATABASES = {"default": dj_database_url.config(conn_max_age=60, conn_health_checks=True)}
    if DATABASES["default"]["ENGINE"] == "django.db.backends.postgresql":
        # Statements are planned once for each connection: planning is a fifth of what a submit costs.
        DATABASES["default"].setdefault("OPTIONS", {}).update(server_side_binding=True, prepare_threshold=5)
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": HOME / "db.sqlite3",
            "CONN_MAX_AGE": 60,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=67108864;",
            },
        }
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Celery: JSON only, results never used, arguments are ids. See training/tasks.py.
REDIS_URL = redis_url()
CELERY_BROKER_URL = REDIS_URL
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "light"
CELERY_TASK_ROUTES = {"training.execute_run": {"queue": "training"}, "annotate.write_answer": {"queue": "live"}}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 12 * 3600,
    "socket_connect_timeout": 2,
    "socket_timeout": 30,
}
CELERY_TASK_PUBLISH_RETRY = False  # the sweeper sends again what could not be sent
CELERY_BEAT_SCHEDULE = {"sweep": {"task": "training.sweep", "schedule": 10.0, "options": {"expires": 10}}}
CELERY_BEAT_SCHEDULER = "celery.beat:Scheduler"  # in memory: no file that a kill could spoil

# Accounts
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "annotate:projects"
LOGOUT_REDIRECT_URL = "login"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = IS_HTTPS
SECURE_SSL_REDIRECT = IS_HTTPS
SECURE_HSTS_SECONDS = 31536000 if IS_HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if IS_HTTPS else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# Prompts and responses are hostile text: nothing inline runs, nothing is fetched from elsewhere.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "font-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "object-src": [NONE],
    }
}

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
LOCALE_PATHS = [BASE_DIR / "locale"]
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = HOME / "static"
STATICFILES_DIRS = [
    BASE_DIR / "static",
    ("vendor/sortablejs", BASE_DIR / "node_modules" / "sortablejs"),
    ("vendor/chartjs", BASE_DIR / "node_modules" / "chart.js" / "dist"),
    ("vendor/chartjs-error-bars", BASE_DIR / "node_modules" / "chartjs-chart-error-bars" / "build"),
    ("vendor/uplot", BASE_DIR / "node_modules" / "uplot" / "dist"),
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "config.storage.StaticFilesStorage"},
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 10 * 1024 * 1024

# Imported files: see annotate/uploads.py
IMPORT_MAX_BYTES = int(os.environ.get("IMPORT_MAX_MB", "2048")) * 1024 * 1024
FILE_UPLOAD_HANDLERS = ["annotate.uploads.UploadHandler"]
FILE_UPLOAD_TEMP_DIR = HOME / "uploads"
FILE_UPLOAD_TEMP_DIR.mkdir(mode=0o700, exist_ok=True)

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"class": "config.logs.LineFormatter", "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

# Runs (see training/launch.py)
RUNS_DIR = HOME / "runs"
PREFERENCE_SETS_DIR = HOME / "preference_sets"
MEMBERS_DIR = HOME / "members"
JUDGE_KEYS = {
    name.strip() for name in os.environ.get("PLUMBLINE_JUDGE_KEYS", "OPENAI_API_KEY").split(",") if name.strip()
}
SCORE_CACHE = HOME / "scores.sqlite3"  # what members have scored, for all runs
RUN_HEARTBEAT_SECONDS = 2
RUN_STALE_SECONDS = 30
RUN_MAX_ATTEMPTS = 3
RUN_STOP_SECONDS = 30  # from SIGTERM, which asks for a checkpoint, to SIGKILL
RUN_SILENT_SECONDS = 2 * 3600  # neither metrics nor log for so long: the trainer hangs
RUN_TRAINER = "training.alignment"  # the module started with a run directory as its argument
