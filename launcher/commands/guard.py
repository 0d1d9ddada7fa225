"""How a subcommand ends: its exit code, and the errors that a person can act on, without a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from verst.launcher.recipe.faults import UserError

# A person can act on these; any other is a bug of ours.
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def guard[**P](command: Callable[P, int], *arguments: P.args, **options: P.kwargs) -> int:
    """Runs a command; errors that a person can act on are printed without a traceback."""
    try:
        return command(*arguments, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `verst logs | head`: the reader has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        print(f"{error.filename or 'a file'} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
