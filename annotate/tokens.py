"""Secrets that are shown once and kept by their digests: invitation links and API tokens.

They are drawn with 256 bits, so a plain SHA-256 is enough: nobody finds such a secret by trying.
"""

import hashlib
import secrets


def new_token() -> tuple[str, str]:
    """A secret and the digest by which it is known again."""
    secret = secrets.token_urlsafe(32)
    return secret, token_digest(secret)


def token_digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
