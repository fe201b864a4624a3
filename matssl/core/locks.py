"""Locks on open files, which the kernel frees with the process, however it ends."""

from __future__ import annotations

import fcntl


def hold(handle: int, *, wait: bool, shared: bool = False) -> bool:
    """Lock an open file or folder until it is closed.

    Some network file systems have no locks: there all goes on without one.

    Args:
        handle: of the file.
        wait: whether to wait for a process that has it.
        shared: whether others may have it, too, who ask for it so.

    Returns:
        False where another process has it and ``wait`` is not set.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
