"""The command line of `verst`: options and help texts, one file per group of subcommands.

`running.py` has `run`, `submit`, `cancel` and `resume`; `planning.py` has `plan`, `doctor` and `schema`;
`watching.py` has `status`, `dash`, `top`, `logs` and `trace`; `models.py` has `export`, `fetch` and
`convert`; and `actors.py` has `verst actors`. `arguments.py` defines the arguments that several of them take,
and `guard.py` turns errors into exit codes. A command imports its implementation only when it is called, so
that `verst --help` is fast.
"""
