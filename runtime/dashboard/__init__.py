"""The dashboard: a web page about one run, from its folder alone, while it runs and afterwards.

`folder_state.py` follows the files and folds them into tables, `app.py` answers the page's questions over HTTP,
`guard.py` lets in only who has the token, `server.py` binds and serves, `static/` is the page. It writes nothing,
talks to no process of the run and loads nothing from the internet.
"""
