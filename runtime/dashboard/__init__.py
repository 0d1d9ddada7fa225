"""The dashboard: a web page that shows runs from their folders, while they run and afterwards.

It talks to no process of a run and loads nothing from the internet. It writes one thing: a request to a node's agent
for the stack of a process (`stacks.py`).

`server.py` binds a port and serves, `guard.py` admits only requests with the token, and `app.py` says which request
goes where. `answers.py` answers those about one run, with what `requests.py` has in common for all. `runs.py` lists
the runs of a folder. `folder_state.py` follows a run's files and keeps what the page needs: it uses `columns.py`
(records as columns), `processes.py` (the table of processes), `lives.py` (the lives of the run), `run_state.py` (the
state of the run in a word) and `bottleneck.py`. `pulse.py` measures how long ago a file changed. `nodes.py` reads how
busy and full the machines are, `log_files.py` logs, `shown.py` kept samples, and `flat_recipe.py` compares recipes. The
page itself is in `static/`; begin with `app.js`.
"""
