"""The dashboard: a web page that shows one run from its folder, while it runs and afterwards.

It writes nothing, talks to no process of the run and loads nothing from the internet.

`server.py` binds a port and serves, `guard.py` admits only requests with the token, and `app.py` answers the page's
requests. `folder_state.py` follows the run's files and keeps what the page needs: it uses `columns.py` (records as
columns), `processes.py` (the table of processes), `run_state.py` (the state of the run in a word) and `bottleneck.py`.
`pulse.py` measures how long ago a file changed. `log_files.py` reads logs, and `shown.py` kept samples. The page itself
is in `static/`; begin with `app.js`.
"""
