"""The container files say the same as the Procfile, and hold no password. (No Docker engine is needed to see that.)"""

import re

import honcho.environ
import pytest
import yaml

from config.home import BASE_DIR

COMPOSE = (BASE_DIR / "docker-compose.yml").read_text()
SERVICES = yaml.safe_load(COMPOSE)["services"]
PROCESSES = honcho.environ.parse_procfile((BASE_DIR / "Procfile").read_text()).processes


@pytest.mark.parametrize("name", ["web", "worker", "trainer", "live", "beat"])
def test_service_runs_the_command_of_the_procfile(name):
    assert PROCESSES[name] == f"trap exit TERM; while :; do {SERVICES[name]['command']}; sleep 1; done"


def test_every_lasting_service_has_a_health_check_and_starts_again():
    lasting = {"web", "worker", "trainer", "live", "beat", "postgres", "redis"}
    assert {name for name, service in SERVICES.items() if "test" in service.get("healthcheck", {})} == lasting
    assert {name for name, service in SERVICES.items() if service["restart"] == "unless-stopped"} == lasting


def test_what_must_last_is_on_volumes():
    volumes = {name: service["volumes"] for name, service in SERVICES.items()}
    ours = {name: ["state:/data"] for name in PROCESSES if name not in ("redis", "ready")}
    kept = {"prepare": ["state:/data"], "postgres": ["postgres:/var/lib/postgresql/data"], "redis": ["redis:/data"]}
    assert volumes == {**ours, **kept}


def test_no_password_has_a_default():
    variables = re.findall(r"\$\{(\w+)(:?[-?])", COMPOSE)
    assert {name: sign for name, sign in variables if "PASSWORD" in name} == {
        "POSTGRES_PASSWORD": ":?",
        "REDIS_PASSWORD": ":?",
    }


def test_image_runs_as_an_unprivileged_user_and_takes_only_what_it_runs():
    instructions = [line.split() for line in (BASE_DIR / "Dockerfile").read_text().splitlines()]
    assert [words[1] for words in instructions if words and words[0] == "USER"] == ["10001"]
    assert (BASE_DIR / ".dockerignore").read_text().startswith("*\n")
