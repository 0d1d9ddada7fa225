"""The data of routing replay, packed into few bytes: `routing.py` for the experts that an engine's routers chose,
`selection.py` for the positions that its sparse attention chose. `docs/routing_replay.md` explains the method.
"""
