"""Data for a run: prompts, demonstrations, and the data and models of the bundled recipes.

`prompts.py` reads a prompt file and tokenises it, and `demonstrations.py` does the same with the rows of supervised
stages (`stage_rows.py` checks single ones, `turns.py` finds what the assistant wrote). Both read rows with
`records.py`, which names file and line of a faulty row, messages and tools with `chat.py`, and render them with
`chat_template.py`. `cursor.py` decides which row a prompt group is for, and `config.py` is the recipe's `data`
section. `tasks.py` and `models.py` make the data and the model folders that the bundled recipes use.
"""
