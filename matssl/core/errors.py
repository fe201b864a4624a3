"""Mistakes a user can make, and the one line they end in."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Sequence

from matssl.core.wording import cut

USER_ERROR_EXIT = 2
INCOMPLETE_EXIT = 1
# Characters of a refusal. What it quotes from a file is cut where it is quoted.
MOST_SAID = 2000


# What the file system says of the user's files and folders, wherever it says it.
OF_THE_SYSTEM = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ESTALE, errno.EIO, errno.EFBIG),
)


class UserError(Exception):
    """A wrong file, flag, label or checkpoint: one sentence with what, where and what to do."""


class DiskFull(UserError):
    """No room for what is to be written; what was there before is as it was."""


class Incomplete(Exception):
    """A part could not be done, and all else is done and written: one sentence says which part."""


def guard(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)`` and return its exit code; a :class:`UserError` becomes one line and 2.

    With ``--debug`` among the arguments the traceback is shown before that line. Anything that is
    not the user's doing keeps its traceback.

    Where a part of the work failed and the rest is done (:class:`Incomplete`), it is a line and 1.
    Names that no encoding knows (files of other systems) are printed with escapes.

    Args:
        main: the command; returns its exit code, or None for 0.
        argv: arguments without the program's name; ``sys.argv[1:]`` when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main(arguments) or 0
    except Incomplete as error:
        print(f"incomplete: {' '.join(str(error).split())}", file=sys.stderr)
        return INCOMPLETE_EXIT
    except UserError as error:
        if "--debug" in arguments:
            # Late: a command that goes well has no use for it.
            import traceback

            traceback.print_exc()
        line = cut(" ".join(str(error).split()), MOST_SAID)
        print(f"error: {line}", file=sys.stderr)
        return USER_ERROR_EXIT
    except BrokenPipeError:
        # The reader of our output (head, less) went away; a traceback would help nobody.
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        if "--debug" in arguments:
            import traceback

            traceback.print_exc()
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        return USER_ERROR_EXIT
    except RuntimeError as error:
        # Before Python 3.13 pathlib says so of what the system calls ELOOP.
        if not str(error).startswith("Symlink loop"):
            raise
        print(f"error: {error}: a link leads to itself; take it away", file=sys.stderr)
        return USER_ERROR_EXIT
    except KeyboardInterrupt:
        # Before a stage's loop there is nothing to save; in it, Ctrl-C ends between two steps.
        print("\nstopped", file=sys.stderr)
        return 130
