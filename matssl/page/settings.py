"""Flags of ``python -m matssl.tools.serve``; nothing here imports torch or a web framework."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import ToolSettings

DESCRIPTION = (
    "Open a page in the browser for the micrographs of a folder: look, label, teach, see, correct, "
    "measure. It reads and writes nothing outside WORKSPACE; labels go to WORKSPACE/labels, runs "
    "to WORKSPACE/experiments. Programs ask it for predictions by HTTP (docs/page.md)."
)
# A token that one can guess is none.
SHORTEST_TOKEN = 16
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")


def host_problem(host: str) -> str:
    """Return what is wrong with ``--host``, "" where nothing is."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _NAME.fullmatch(host):
            return f"--host must be an address or a name of this machine, not {host!r}"
    return ""


def token_problem(token: str) -> str:
    """Return what is wrong with ``--token``, "" where nothing is."""
    if len(token) >= SHORTEST_TOKEN and re.fullmatch(r"[A-Za-z0-9_.~-]{1,200}", token):
        return ""
    return (
        f"--token must have {SHORTEST_TOKEN} to 200 letters, digits, - or _: who has it may read "
        "and label the pictures"
    )


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServeSettings(ToolSettings):
    """Flags of the page."""

    workspace: str = flag(
        "",
        "data",
        "folder of micrographs, or of folders of them",
        required=True,
        positional=True,
        leads=paths.folder,
    )
    host: str = flag(
        "127.0.0.1",
        "network",
        "address to listen on; other than this machine's own it needs --token",
        check=host_problem,
        first=True,
    )
    port: int = flag(8765, "network", "port; 0: any free one", low=0, high=65_535, first=True)
    token: str | None = flag(
        None,
        "network",
        "word that requests must know",
        auto="a new random one, in the printed address",
        check=token_problem,
        first=True,
    )
    upload_mb: int = flag(
        512, "network", "largest picture that is taken from the browser, MB", low=1, high=1 << 20
    )

    def problems(self) -> list[Problem]:
        """Return what does not go together."""
        if is_loopback(self.host) or self.token is not None:
            return []
        told = f"--host {self.host} can be reached by others: give a --token that they cannot guess"
        return [Problem(told, ("host", "token"))]


def resolve(argv: Sequence[str], here: bool = False) -> ServeSettings:
    """Return what a command line says.

    Args:
        argv: without the program's name.
        here: whether it is to run here, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong with it.
        SystemExit: after ``--help``.
    """
    return parse_one(
        ServeSettings,
        argv,
        DESCRIPTION,
        problems=ServeSettings.problems,
        prog="python -m matssl.tools.serve",
        here=here,
    )
