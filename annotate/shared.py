"""Redis, in which processes share what may be lost."""

import redis
from django.conf import settings

TIMEOUT_SECONDS = 2


def connect() -> "redis.Redis":
    """A connection; what is done with it raises `redis.RedisError` where there is no server."""
    address = settings.REDIS_URL.replace("redis+socket://", "unix://", 1)
    return redis.Redis.from_url(address, socket_timeout=TIMEOUT_SECONDS)
