"""Who may ask: token, host and origin of every request, the size of its body, headers of answers.

A page of another site can make a browser send requests here. It knows no token; the cookie is not
sent with its requests (SameSite=Strict); its origin is refused; and a name that it lets lead to
this machine (DNS rebinding) is no host that is answered.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# Bytes of a body, but for pictures and masks.
PLAIN_BODY = 1 << 20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
SAFE = ("GET", "HEAD")
_NO_TOKEN = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>matssl</title><h1>This page is "
    "private</h1><p>Open the whole address that the command printed, with its token.</p></html>"
)
# A redirect would keep the cookie back where a link on another page led here.
_ENTER = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>matssl</title>"
    "<meta http-equiv=refresh content='0;url=/'><p><a href='/'>Open the page</a></p></html>"
)


class TooLarge(Exception):
    """A body beyond its bound."""


@dataclass(frozen=True)
class Door:
    """What a request must know.

    Attributes:
        token: of the server.
        port: it listens on.
        names: hosts beside addresses, in lower case.
        uploads: beginnings of paths that take pictures.
        upload_bytes: largest of these bodies.
    """

    token: str
    port: int
    names: frozenset[str]
    uploads: tuple[str, ...]
    upload_bytes: int

    @property
    def cookie(self) -> str:
        """Name of the cookie: browsers share cookies between the ports of a machine."""
        return f"matssl-{self.port}"

    def host_is_known(self, host: str) -> bool:
        """Return whether a Host header names this server: by an address or its own name."""
        name, _, port = host.rpartition(":") if _has_port(host) else (host, "", "")
        if port and port != str(self.port):
            return False
        if not port and self.port not in (80, 443):
            return False
        name = name.strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True

    def knows(self, token: str) -> bool:
        """Return whether a token is the server's."""
        return secrets.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


class Guard:
    """An application behind a door."""

    def __init__(self, app: App, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = _headers(scope["headers"])
        entering = self._entered(scope, headers)
        if entering is not None:
            await _answer(send, *entering)
            return
        most = self.door.upload_bytes if _is_upload(scope, self.door.uploads) else PLAIN_BODY
        length = headers.get("content-length", "0")
        told = f"the request is larger than {most // (1 << 20)} MB"
        if not length.isdigit() or int(length[:15]) > most:
            await _answer(send, 413, told)
            return
        body = _Counted(receive, most)
        answer = _Dressed(send, body, told)
        try:
            await self.app(scope, body.receive, answer.send)
        except TooLarge:
            if not answer.started:
                await _answer(send, 413, told)

    def _entered(
        self, scope: MutableMapping[str, Any], headers: dict[str, str]
    ) -> tuple[int, str, dict[str, str]] | None:
        """Return the answer to who may not come in, or comes in with the token; None: may."""
        door = self.door
        host = headers.get("host", "")
        if not door.host_is_known(host):
            return 421, "this server has another name", {}
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in _origins(host):
            return 403, "requests of other pages are not answered", {}
        path, method = scope["path"], scope["method"]
        try:
            given = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
        except ValueError:
            return 400, "the address has too many parts", {}
        if path == "/" and method in SAFE and "token" in given:
            if not door.knows(given["token"][0]):
                return 401, "wrong token", {}
            cookie = f"{door.cookie}={door.token}; HttpOnly; SameSite=Strict; Path=/"
            return 200, _ENTER, {"set-cookie": cookie}
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "requests of other pages are not answered", {}
        bearer = headers.get("authorization", "")
        if bearer.lower().startswith("bearer ") and door.knows(bearer[7:].strip()):
            return None
        if not door.knows(_cookies(headers.get("cookie", "")).get(door.cookie, "")):
            return 401, "no token: open the address that the command printed", {}
        # A form of another page sends no origin that is ours; our own scripts always do.
        if method not in SAFE and origin is None:
            return 403, "requests of other pages are not answered", {}
        return None


class _Counted:
    """A body of which no more than so many bytes are taken."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self.most, self.taken = receive, most, 0

    @property
    def exceeded(self) -> bool:
        return self.taken > self.most

    async def receive(self) -> Message:
        message = await self._receive()
        self.taken += len(message.get("body", b""))
        if self.exceeded:
            raise TooLarge
        return message


class _Dressed:
    """Answers with the headers that all of them have."""

    def __init__(self, send: Send, body: _Counted, told: str) -> None:
        self._send, self.body, self.told, self.started = send, body, told, False
        self.replaced = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if self.body.exceeded:
                # What read the body took its end for another mistake.
                self.replaced = True
                await _answer(self._send, 413, self.told)
                return
            own = {name.lower() for name, _ in message.get("headers", [])}
            more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in own]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        if not self.replaced:
            await self._send(message)


def _is_upload(scope: MutableMapping[str, Any], uploads: tuple[str, ...]) -> bool:
    return scope["method"] in ("POST", "PUT") and scope["path"] in uploads


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name; what comes twice is joined, and fits nothing then."""
    found: dict[str, str] = {}
    for name, value in pairs:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}; {text}" if key in found else text
    return found


def _cookies(text: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in text.split(";"))
    return {name: value for name, sign, value in pairs if sign}


def _origins(host: str) -> tuple[str, str]:
    """Return the origins of our own pages: the host that was asked, which is known."""
    return f"http://{host.lower()}", f"https://{host.lower()}"


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


async def _answer(send: Send, status: int, told: str, more: dict[str, str] | None = None) -> None:
    page = status in (200, 401)
    text = _NO_TOKEN if status == 401 else told if page else json.dumps({"error": told})
    kind = "text/html; charset=utf-8" if page else "application/json"
    headers = {**HEADERS, "content-type": kind, "content-length": str(len(text.encode()))}
    if status == 413:
        # The rest of the body is not read.
        headers["connection"] = "close"
    pairs = [(n.encode(), v.encode()) for n, v in {**headers, **(more or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text.encode()})
