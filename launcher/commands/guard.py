"""Turns the errors of a subcommand into messages and exit codes.

An error that the user can act on is printed without a traceback. Any other is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from verst.launcher.recipe.faults import UserError

# The user can act on these. Any other OSError is a bug of ours.
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def guard[**P](command: Callable[P, int], *arguments: P.args, **options: P.kwargs) -> int:
    """Runs a command and returns its exit code; prints errors that the user can act on without a traceback.

    Exit codes: 2 for a UserError, 130 for Ctrl-C, 1 for a full or read-only disk or missing permissions.
    """
    try:
        return command(*arguments, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the pipe has gone, as with `verst logs | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        print(f"cannot write {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 1
