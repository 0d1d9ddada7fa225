"""Faults of the data files: `data.py` of their settings, `rows.py` of the rows in them.

`rows.py` starts `row_program.py`, which reads the rows with the tokenizer: lengths, labels (`labels.py`), the engines'
context (`context.py`) and how answers end (`ends.py`). `rendered.py` shows prompts as the model gets them, by the
program `render_program.py`.
"""
