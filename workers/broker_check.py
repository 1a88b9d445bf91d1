"""A worker looks at its broker while its engine's libraries load: what no waiting mends ends it with one line."""

from __future__ import annotations

import logging

from redis.exceptions import RedisError

from workers.redis_client import check_server, reason
from workers.redis_url import shown_url
from workers.settings import DEFAULT_REDIS_URL, Settings
from workers.startup import BROKER, Startup

log = logging.getLogger(__name__)


def ask_broker(config: Settings, parts: Startup) -> None:
    """Ask once; a broker that is only away is waited for later.

    Raises SettingsError if the answer will never be better: a Redis Cluster, a broker that refuses this worker.
    """
    url = config.redis_url or DEFAULT_REDIS_URL
    try:
        with parts.part(BROKER):
            check_server(url)
    except RedisError as error:
        log.warning("%s does not answer yet: %s", shown_url(url), reason(error))
