"""Hugging Face model folders. `folder.py` reads one and imports it into a trainer's model, `export.py` writes one from
that model, and `convert.py` converts a folder to another format, reading it through `stored_model.py`.
"""
