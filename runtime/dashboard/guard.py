"""Admits only browsers that have the token, which the dashboard prints when it starts.

Every user of the node can connect to a loopback port, so the port alone protects nothing. The first request has the
token in its address. The answer puts it into a cookie, so that it does not stay in the address bar.

All requests only read, but for one: POST to `api/stack` asks for the stack of a process. A browser sends the cookie
also for a page of another port of this host, which may be another user's. So this request needs a header that no
foreign page can send without asking first, and nobody answers that question.
"""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The browser may run, show and contact nothing but this server.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
ORDERS = ("/api/stack",)  # the paths that take POST
ORDER_HEADER = "x-verst-dash"
_REFUSAL = "Open the address that `verst dash` printed, with its token. Each start makes a new token.\n"


class Guard:
    """Answers 401 to requests without the token, and adds the headers above to every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()
        # A browser shares cookies between all ports of a host: two dashboards must not overwrite each other's.
        self.cookie = f"verst-dash-{hashlib.sha256(self._token).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request (ASGI)."""
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._choose(scope)(scope, receive, send_guarded)

    def _choose(self, scope: Scope) -> ASGIApp:
        if scope["method"] not in ("GET", "HEAD") and not _is_order(scope):
            return PlainTextResponse("this dashboard is read-only: use GET or HEAD\n", status_code=405)
        if scope["path"] == "/" and (given := self._in_address(scope)) is not None:
            return self._let_in() if self._is_token(given) else _refuse()
        return self._app if self._is_token(self._in_cookie(scope)) else _refuse()

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token)

    def _in_address(self, scope: Scope) -> str | None:
        values = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        return values[-1] if values else None

    def _in_cookie(self, scope: Scope) -> str:
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(Headers(scope=scope).get("cookie", ""))
        except CookieError:
            return ""
        return jar[self.cookie].value if self.cookie in jar else ""

    def _let_in(self) -> Response:
        response = RedirectResponse("./", status_code=303)
        response.set_cookie(self.cookie, self._token.decode(), httponly=True, samesite="strict", path="/")
        return response


def _is_order(scope: Scope) -> bool:
    """Whether this is one of the few requests that change something, sent by the dashboard's own page."""
    return scope["method"] == "POST" and scope["path"] in ORDERS and ORDER_HEADER in Headers(scope=scope)


def _refuse() -> Response:
    return PlainTextResponse(_REFUSAL, status_code=401)
