"""The files of a run, which its processes and the launcher share. Of Verst it imports only `verst.sync`.

`folder.py` is the run folder with its small files, and `plan.py` says which process runs where. `ending.py`
is how the end of a run is reported, and `blame.py` finds out which process failed first. `checkpoints.py`
keeps checkpoint folders, `log_lines.py` keeps logs, and `line_reader.py` follows the growing JSON-lines
files.
"""
