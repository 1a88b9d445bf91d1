"""Flower's doors: who may come in, however Flower was started (`whisper-fleet flower`, ``celery -A workers flower``).

Flower 2.2 by itself listens on every address without a password, leaves ``/metrics`` open even with one, and without
one answers any web page that a person has open. Its handlers are wrapped when it loads the app, before it listens.
``/healthcheck`` says only that it lives, and stays open.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from typing import Any
from urllib.parse import urlsplit

from celery import signals

log = logging.getLogger(__name__)

ADVICE = "Flower can revoke tasks and stop workers: set FLOWER_BASIC_AUTH=user:password first"
_API = "FLOWER_UNAUTHENTICATED_API"


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches ``address``: a name or number, without port."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def same_site(headers: Any) -> bool:
    """Whether a request comes from a page of Flower's own, or from no page at all, under a name of this machine.

    Against web pages elsewhere that a person has open: those may send requests to this machine, also under a name of
    theirs that leads here.
    """
    host, origin = headers.get("Host", ""), headers.get("Origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if not is_loopback(name) or headers.get("Sec-Fetch-Site") not in (None, "none", "same-origin"):
        return False
    return origin is None or origin.partition("://")[2] == host


def install() -> None:
    """Shut the doors when Flower loads the app; nothing happens in other processes."""
    signals.import_modules.connect(_shut, weak=False, dispatch_uid="whisper-fleet-flower-doors")


def _shut(**_: Any) -> None:
    # `celery` imports Flower for each of its commands where it is installed; nobody else has it loaded.
    if "flower.app" not in sys.modules:
        return
    from flower.app import Flower
    from flower.views.monitor import Metrics
    from tornado.web import ErrorHandler, authenticated

    from workers import broker_clock

    if hasattr(Flower, "opened"):
        return
    Flower.opened, listen, find = False, Flower.start_http_server, Flower.find_handler

    def start_http_server(self: Any) -> Any:
        options = self.options
        if not (options.basic_auth or options.auth):
            where = options.unix_socket or options.address
            if options.unix_socket or not is_loopback(options.address):
                log.critical("Flower does not start on %s: %s", where or "all addresses", ADVICE)
                raise SystemExit(2)
            # On this machine alone the API may answer without a password, but not to other sites' pages. Whoever
            # sets the variable has opened it on purpose, for a proxy that asks for passwords itself, say.
            Flower.opened = _API in os.environ
            os.environ.setdefault(_API, "true")
        else:
            Flower.opened = True
        return listen(self)

    def find_handler(self: Any, request: Any, **options: Any) -> Any:
        if not Flower.opened and not same_site(request.headers):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        return find(self, request, **options)

    broker_clock.install()  # it looks for messages of silent workers, as every consumer does
    Flower.start_http_server, Flower.find_handler = start_http_server, find_handler
    Metrics.get = authenticated(Metrics.get)
