"""The server: an application behind its door, on a port of its own."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from matssl.core import locks
from matssl.core.errors import UserError
from matssl.page.guard import App, Door, Guard
from matssl.page.settings import ServeSettings, is_loopback
from matssl.page.workspace import Workspace

# Packages of the extra [page].
NEEDED = ("fastapi", "uvicorn")
# Requests at once; more are told to come again.
CONCURRENT = 64
# Paths of requests that hold a picture or a mask.
UPLOADS = ("/api/upload", "/api/predict", "/api/labels")


def application(
    workspace: Workspace, token: str, port: int, upload_bytes: int, names: Sequence[str] = ()
) -> Guard:
    """Return the page as an ASGI application.

    Args:
        workspace: all that it reads and writes.
        token: that requests must know.
        port: it is reached by.
        upload_bytes: largest picture that is taken.
        names: of this machine, beside localhost and its addresses.

    Raises:
        UserError: FastAPI is not installed.
    """
    _check_installed()
    from matssl.page.routes import build

    known = frozenset(("localhost", *(name.lower() for name in names)))
    door = Door(token, port, known, UPLOADS, upload_bytes)
    app: App = build(workspace, static())
    return Guard(app, door)


def _check_installed() -> None:
    """Refuse to begin without the packages of the extra.

    Raises:
        UserError: they are named.
    """
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"the page needs {' and '.join(absent)}: pip install 'matssl[page]'")


def static() -> Path:
    """Return the folder of the page's own files."""
    return Path(str(resources.files("matssl.page"))) / "static"


def serve(settings: ServeSettings) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: the port is taken, the workspace is served already, or FastAPI is missing.
    """
    workspace = Workspace.of(settings.workspace)
    lock = _claimed(workspace)
    listening = _listening(settings.host, settings.port)
    port = int(listening.getsockname()[1])
    token = settings.token or secrets.token_urlsafe(24)
    names = () if is_loopback(settings.host) else (socket.gethostname(), settings.host)
    app = application(workspace, token, port, settings.upload_mb << 20, names)
    import uvicorn

    host = settings.host if is_loopback(settings.host) else _shown(settings.host)
    host = f"[{host}]" if ":" in host else host
    print(f"workspace {workspace.root}")
    print(f"open      http://{host}:{port}/?token={token}")
    print("Ctrl-C ends the page; work that is running goes on.", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        # It would print the token.
        access_log=False,
        server_header=False,
        limit_concurrency=CONCURRENT,
        timeout_keep_alive=10,
        lifespan="on",
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        os.close(lock)


def _claimed(workspace: Workspace) -> int:
    """Return the lock that keeps a second page from the workspace."""
    workspace.state.mkdir(exist_ok=True)
    handle = os.open(workspace.state / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    if not locks.hold(handle, wait=False):
        os.close(handle)
        raise UserError(f"{workspace.root} is open in another page; use that one, or stop it")
    return handle


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, proto)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        told = error.strerror or error
        raise UserError(f"cannot listen on {host}, port {port}: {told}; try --port 0") from error
    return found


def _shown(host: str) -> str:
    """Return what others type for a host: a name where it stands for all addresses."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host
