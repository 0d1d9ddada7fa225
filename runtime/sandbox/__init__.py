"""A sandbox for untrusted Python programs: code that a model has written.

`sandbox.py` has the sandbox as a caller sees it, and takes the strongest method that this machine has. `room.py` starts
`inside.py`, a program of its own, which shuts itself in and then runs the programs, behind the filter of
`system_calls.py` and within `limits.py`. `methods.py` says what each method protects from. docs/sandbox.md tells users.
"""

from verst.runtime.sandbox.limits import Outcome, SandboxLimits
from verst.runtime.sandbox.methods import SandboxError
from verst.runtime.sandbox.sandbox import Sandbox

__all__ = ["Outcome", "Sandbox", "SandboxError", "SandboxLimits"]
