"""The command line of `verst`: options and help texts, one file per group of subcommands.

`planning.py` has what comes before a run: `init`, `check-reward`, `plan`, `doctor`, `schema` and `algorithms`;
`running.py` has `run`, `submit`, `resume`, `cancel` and `rm`; `watching.py` has `ls`, `status`, `samples`, `compare`,
`dash`, `top`, `logs` and `trace`; `models.py` has `eval`, `export`, `fetch` and `convert`; and
`actors.py` has `verst actors`.
`arguments.py` defines the arguments that several of them take, and `guard.py` turns errors into exit codes. A command
imports its implementation only when it is called, so that `verst --help` is fast.
"""
