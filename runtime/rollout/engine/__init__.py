"""One SGLang engine, from outside: its processes and the calls to them.

`engine.py` is the engine as a worker uses it: generate, pause, release memory, stop. `updates.py` has its weight calls,
and `client.py` the HTTP client for both. `start.py` starts SGLang with the arguments of `arguments.py`; `server.py` is
the server process as its parent sees it, and `process.py` its main program. `memory.py` takes and releases GPU memory
in the colocated layout. In an engine over several nodes, `nodes.py` lets the parts meet, and `part.py` is the process
on the further nodes.
"""
