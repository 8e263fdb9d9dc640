"""The Celery app. A message only wakes a worker; what is true stands in the database."""

import os
import socket
import warnings
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import beat_init, celeryd_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

warnings.filterwarnings("ignore", category=SecurityWarning)  # to root, because of pickle; here is JSON only

app = Celery("plumbline")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@celeryd_init.connect
def name_worker_connections(sender: str, conf: Any, **kwargs: Any) -> None:
    """Let Redis list this worker's connections as `worker@host`: so config.ready knows who is connected."""
    conf.broker_transport_options = {**conf.broker_transport_options, "client_name": sender}


@beat_init.connect
def name_beat_connections(sender: Any, **kwargs: Any) -> None:
    name_worker_connections(f"beat@{socket.gethostname()}", sender.app.conf)
