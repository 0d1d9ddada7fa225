"""Model folders: `fetch.py` makes those of the bundled recipes, `convert.py` converts one to another weight format, and
`export.py` copies the model of a finished run.
"""
