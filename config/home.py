"""PLUMBLINE_HOME: the one folder that holds all state of an installation, and its private files.

Standard library only: the settings, the embedded Redis and the Makefile's helpers all start here.
"""

import os
import secrets
from pathlib import Path
from urllib.parse import quote

BASE_DIR = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("PLUMBLINE_HOME") or BASE_DIR / "var").resolve()


def private_file(path: Path, content: str) -> str:
    """Create `path` with `content`, mode 0600, unless it exists; return what it holds.

    The content is linked into place whole, so that two first starts at once agree on one file.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content)
        try:
            os.link(scratch, path)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    return path.read_text().strip()


def secret_key() -> str:
    """SECRET_KEY from the environment, else the installation's own, made at first use."""
    return os.environ.get("SECRET_KEY") or private_file(HOME / "secret_key", secrets.token_urlsafe(64))


def redis_socket() -> Path:
    """Where the embedded Redis listens: in HOME, or in a private folder where that path is too long for a socket."""
    socket = HOME / "redis" / "redis.sock"
    if len(os.fsencode(socket)) < 100:  # the kernel's limit is 108 bytes
        return socket
    import hashlib  # noqa: PLC0415 -- only for deep folders
    import tempfile  # noqa: PLC0415

    digest = hashlib.sha256(os.fsencode(HOME)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"plumbline-{os.getuid()}-{digest}" / "redis.sock"


def redis_url() -> str:
    """The Redis server to use, as Celery spells it: REDIS_URL, else the embedded one's socket."""
    return os.environ.get("REDIS_URL") or f"redis+socket://{quote(str(redis_socket()))}"
