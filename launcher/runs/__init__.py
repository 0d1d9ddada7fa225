"""Run folders from the launcher's side: preparing a new one, opening an existing one, reading how a run ended.

`prepare.py` writes a folder for launch, `open.py` opens and locks it, `resume.py` reviews what a resumed run
changes, `ending.py` reads how the run ended, and `failures.py` finds which process failed first. The layout
of the folder is defined in `runtime/run/folder.py`.
"""
