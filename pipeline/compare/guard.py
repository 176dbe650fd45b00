"""Who may talk to the page: whoever has the key, by the machine's own name; and the headers on all that goes out."""

import secrets

from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ["127.0.0.1", "localhost"]


class Guard:
    """Refuses other hosts' names (DNS rebinding) with 400 and other keys with 403, before any page sees the request."""

    def __init__(self, site: ASGIApp, key: str, policy: str, refusal: str) -> None:
        self.key, self.refusal = key.encode(), refusal
        self.site = site
        self.checked = TrustedHostMiddleware(self._with_key, allowed_hosts=HOSTS, www_redirect=False)
        self.headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",  # the address holds the key
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.checked(scope, receive, with_headers)

    async def _with_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = scope["path"].split("/")[1:2]
        given = first[0].encode("utf-8", "replace") if first else b""
        refused = HTMLResponse(self.refusal, 403)
        await (self.site if secrets.compare_digest(given, self.key) else refused)(scope, receive, send)
