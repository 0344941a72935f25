"""Protection of the live app: it answers only its own page, under this machine's names, and limits uploads."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Call = Callable[..., Awaitable[None]]

EVERYWHERE = ("0.0.0.0", "::", "")  # addresses that let other machines in
HERE = ("localhost", "127.0.0.1", "::1")


class Guard:
    """ASGI middleware against foreign pages.

    Such a page may send requests from the user's browser, and read the answers if its name resolves to this machine
    (DNS rebinding). So `Host` must be a name of this machine, and `Origin` the same address.
    """

    def __init__(self, app: Call, host: str, folder: Path, most_bytes: int) -> None:
        """`host`: the address of the app. `folder`: holds uploads, at most `most_bytes` together."""
        self.app, self.host, self.folder, self.most_bytes = app, host, folder, most_bytes

    async def __call__(self, scope: Scope, receive: Call, send: Call) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        status, problem = self._problem(scope)
        if not problem:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        kind = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": kind})
        return await send({"type": "http.response.body", "body": problem.encode()})

    def _problem(self, scope: Scope) -> tuple[int, str]:
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        if len(hosts) != 1 or not self.allows(hosts[0]):
            return 400, f"this app does not answer under the name {', '.join(hosts)[:100]!r}"
        if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
            return 403, "this app answers only its own page"
        # An image or script on a foreign page, which sends no Origin.
        if headers.get("sec-fetch-site") == ["cross-site"] and headers.get("sec-fetch-mode") != ["navigate"]:
            return 403, "this app answers only its own page"
        if scope.get("method") == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            held = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
            if held > self.most_bytes:
                return 507, "too many uploads: try again later"
        return 200, ""

    def allows(self, netloc: str) -> bool:
        """Tell whether a `Host`, with or without a port, is this machine.

        If other machines are let in, any address is allowed, because only a name can be made to resolve elsewhere.
        """
        try:
            name = (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in (*HERE, self.host.lower()):
            return bool(name)
        if self.host in HERE:
            return False
        own = socket.gethostname().lower()
        return name in (own, f"{own}.local", socket.getfqdn().lower()) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return name not in EVERYWHERE
