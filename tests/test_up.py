import socket

import pytest

from config import embedded_redis, up


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def environment(monkeypatch, free_port):
    monkeypatch.setenv("HOST", "127.0.0.1")
    monkeypatch.setenv("PORT", str(free_port))
    monkeypatch.setattr(up, "IS_REDIS_EMBEDDED", True)


def test_nothing_speaks_against_a_start():
    assert up.reason_not_to_start() is None


def test_taken_port_speaks_against_a_start(free_port):
    with socket.create_server(("127.0.0.1", free_port)):
        reason = f"Port {free_port} on 127.0.0.1 is taken. Choose another one: make up PORT=8001"
        assert up.reason_not_to_start() == reason


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", "web", "invalid literal for int() with base 10: 'web'"),
        ("127.0.0.1", "70000", "bind(): port must be 0-65535."),
        ("192.0.2.1", "8000", "[Errno 99] Cannot assign requested address"),
    ],
)
def test_impossible_address_speaks_against_a_start(monkeypatch, host, port, reason):
    monkeypatch.setenv("HOST", host)
    monkeypatch.setenv("PORT", port)
    assert (up.reason_not_to_start() or "").startswith(f"Cannot listen on HOST={host} PORT={port}: {reason}")


def test_missing_redis_speaks_against_a_start_unless_there_is_another(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda name: None)
    assert up.reason_not_to_start() == embedded_redis.NO_REDIS
    monkeypatch.setattr(up, "IS_REDIS_EMBEDDED", False)
    assert up.reason_not_to_start() is None


def test_redis_on_path_will_do(monkeypatch, tmp_path):
    (tmp_path / "redis-server").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda name: None)
    assert embedded_redis.command()[0] == f"{tmp_path}/redis-server"


def test_redis_is_started_only_where_it_is_embedded(monkeypatch):
    assert list(up.commands()) == ["redis", "web", "worker", "trainer", "live", "beat", "ready"]
    monkeypatch.setattr(up, "IS_REDIS_EMBEDDED", False)
    assert list(up.commands()) == ["web", "worker", "trainer", "live", "beat", "ready"]
