"""A worker looks at its broker before it loads an engine: what no waiting mends ends it with one line."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps
from redis.exceptions import RedisError

from workers import exit_codes
from workers.errors import SettingsError
from workers.redis_client import check_server, reason
from workers.redis_url import shown_url
from workers.settings import DEFAULT_REDIS_URL, settings

log = logging.getLogger(__name__)


class BrokerStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Refuses a Redis Cluster, and a broker that refuses this worker; one that is only away is waited for later."""

    def start(self, parent: Any) -> None:
        """Ask once. Ends the worker with exit code 1 if the answer will never be better."""
        url = settings().redis_url or DEFAULT_REDIS_URL
        try:
            check_server(url)
        except SettingsError as error:
            log.critical("The worker cannot start: %s", error)
            raise SystemExit(exit_codes.CANNOT_START) from error
        except RedisError as error:
            log.warning("%s does not answer yet: %s", shown_url(url), reason(error))
