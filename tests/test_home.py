import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from config import embedded_redis, home


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(home, "HOME", tmp_path)
    monkeypatch.setattr(embedded_redis, "HOME", tmp_path)
    for name in ("SECRET_KEY", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_private_file_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "new" / "file"
    assert home.private_file(path, "first\n") == "first"
    assert home.private_file(path, "second\n") == "first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_private_file_is_one_for_all_who_make_it_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda number: home.private_file(tmp_path / "file", str(number)), range(200)))
    assert found == {(tmp_path / "file").read_text()}


def test_secret_key_lasts_unless_the_environment_names_one(monkeypatch):
    key = home.secret_key()
    assert len(key) >= 50
    assert home.secret_key() == key
    monkeypatch.setenv("SECRET_KEY", "from outside")
    assert home.secret_key() == "from outside"


def test_redis_url_is_the_embedded_servers_socket_unless_the_environment_names_another(tmp_path, monkeypatch):
    assert home.redis_url() == f"redis+socket://{tmp_path}/redis/redis.sock"
    monkeypatch.setattr(home, "HOME", Path("/a b#c"))
    assert home.redis_url() == "redis+socket:///a%20b%23c/redis/redis.sock"
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/0")
    assert home.redis_url() == "redis://elsewhere:6379/0"


def test_redis_socket_of_a_deep_home_fits_the_kernels_limit(monkeypatch):
    deep = [Path("/" + "x" * 120), Path("/" + "y" * 120)]
    sockets = []
    for folder in deep:
        monkeypatch.setattr(home, "HOME", folder)
        sockets.append(home.redis_socket())
    assert [len(os.fsencode(socket)) < 108 for socket in sockets] == [True, True]
    assert sockets[0].parent != sockets[1].parent


def test_private_folder_is_for_its_owner_only(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    assert embedded_redis.private_folder(folder) == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_private_folder_refuses_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SystemExit, match="belongs to somebody else"):
        embedded_redis.private_folder(tmp_path / "link")


def test_stale_redis_socket_does_not_count_as_an_answer():
    home.redis_socket().parent.mkdir()
    home.redis_socket().touch()
    assert embedded_redis.is_answering() is False
