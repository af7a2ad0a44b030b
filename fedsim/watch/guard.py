"""Who may ask the page, and what a browser may do with the answers."""

import ipaddress
from collections.abc import Collection, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Own scripts, styles, images and events, nothing else, and no text becomes markup."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",  # images are private data
}


class Guard:
    """Refuses requests that no reader of the page makes, and sets the headers of every answer.

    A page of somebody else's may have a browser ask here. It can neither read the answers nor show
    them; and one that has its own name lead here (DNS rebinding) is told by that name.

    Args:
        inner: What answers.
        names: Names under which the page may be asked for, besides addresses and `localhost`.
    """

    def __init__(self, inner: ASGIApp, names: Iterable[str]) -> None:
        self.inner = inner
        self.names = frozenset(name.lower() for name in names) | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse to."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refusal(scope)
        await (refused or self.inner)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("this page is only read", 405)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not known(hosts[0], self.names):
            said = "this page does not go by that name; fedsim watch --allow-host NAME has it do so"
            return PlainTextResponse(said, 421)
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        if site in ("cross-site", "same-site") and mode != "navigate":
            return PlainTextResponse("other pages have no business here", 403)
        return None


def known(host: str, names: Collection[str]) -> bool:
    """Whether a `Host` header is an address or one of these names, with any port."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host, ""
    if port and not (port.isascii() and port.isdigit()):
        return False
    if name.lower() in names:
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
