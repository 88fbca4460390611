"""Refuses what another page of the same browser may not do: show the dashboard in a frame, or connect to it.

Streamlit sets no header against frames, and accepts a connection from any port of this machine: a page that
another program serves on it could read and steer the dashboard. See MDN on `frame-ancestors`, and RFC 6455,
section 10.2, on the Origin of a WebSocket.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

HEADERS = {"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY"}
"""Of every answer; the second says the same to browsers that do not know the first."""

_REFUSED = 1008  # policy violation


def may_connect(origin: str | None, host: str | None, others: Collection[str] = ()) -> bool:
    """Tell whether a page of this origin is the dashboard's own; programs send no Origin, browsers always do.

    Parameters
    ----------
    origin, host : str or None
        The headers `Origin` and `Host` of a request.
    others : collection of str
        Origins that are welcome, too: of a proxy that sends another host on.

    Examples
    --------
    >>> may_connect("http://localhost:8501", "localhost:8501"), may_connect(None, "localhost:8501")
    (True, True)
    >>> may_connect("http://localhost:3000", "localhost:8501"), may_connect("null", "localhost:8501")
    (False, False)
    >>> may_connect("https://defuse.example.org", "127.0.0.1:8501", ["https://defuse.example.org"])
    True
    """
    return origin is None or origin in others or urlsplit(origin).netloc == host


class Guard:
    """ASGI middleware around the dashboard: sets `HEADERS`, and refuses WebSockets of other origins.

    Parameters
    ----------
    app : ASGIApp
    others : collection of str
        As `may_connect` takes them.
    """

    def __init__(self, app: ASGIApp, others: Collection[str] = ()) -> None:
        self.app = app
        self.others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "websocket":
            headers = Headers(scope=scope)
            if not may_connect(headers.get("origin"), headers.get("host"), self.others):
                await WebSocketClose(_REFUSED)(scope, receive, send)
                return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_guarded)
