"""Mistakes a user can make, and the one line they end in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

USER_ERROR_EXIT = 2


class UserError(Exception):
    """A wrong file, flag, label or checkpoint: one sentence with what, where and what to do."""


def guard(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)`` and return its exit code; a :class:`UserError` becomes one line and 2.

    With ``--debug`` among the arguments the traceback is shown before that line. Anything that is
    not the user's doing keeps its traceback.

    Args:
        main: the command; returns its exit code, or None for 0.
        argv: arguments without the program's name; ``sys.argv[1:]`` when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return main(arguments) or 0
    except UserError as error:
        if "--debug" in arguments:
            # Late: a command that goes well has no use for it.
            import traceback

            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR_EXIT
    except KeyboardInterrupt:
        # Before a stage's loop there is nothing to save; in it, Ctrl-C ends between two steps.
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) went away; a traceback would help nobody.
        sys.stderr.close()
        return 141
