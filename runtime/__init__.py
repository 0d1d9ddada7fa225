"""Everything that runs on the nodes of a run; `docs/architecture.md` is the map.

`controller` runs the training loop; `trainer`, `rollout` and `store` do its work: they train, generate and keep
samples. `algorithms`, `rewards` and `data` are what they compute with. `node` starts and watches the processes,
`actors` connects them, `messages` defines the calls between them, and `run` knows the files of a run. `metrics` and
`dashboard` show how a run goes; `hooks` loads a user's own functions. Imports `verst.sync` and no other folder of
Verst.
"""
