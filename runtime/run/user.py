"""The user's name, also where the user database does not have this user, as in many containers."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """The user's name; "uid-1234" if nobody knows it.

    In that case also sets USER and LOGNAME, for this process and its children: torch and others ask for the name
    too, and fail without one.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        name = f"uid-{os.getuid()}"
        os.environ["USER"] = os.environ["LOGNAME"] = name
        return name
