"""The web server, as gunicorn reads it: `gunicorn --config config/gunicorn.py`."""

import os

_host = os.environ.get("HOST", "127.0.0.1")

wsgi_app = "config.wsgi"
bind = f"{f'[{_host}]' if ':' in _host else _host}:{os.environ.get('PORT', '8000')}"
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = 4  # more wait for one another: the interpreter runs one at a time
keepalive = 75  # longer than an annotator thinks
preload_app = True  # Django is loaded once; the workers share its memory
graceful_timeout = 4  # below the 5 seconds after which honcho kills
loglevel = "warning"  # standard output stays quiet: the last line says that everything is ready
control_socket_disable = True
