"""Pure geometry: which rank holds which block of which Hugging Face tensor, and who sends what to whom.

`mapping.py` defines the table of rules that each model family has, `layout.py` computes from it what a trainer rank
holds, and `binding.py` connects that to the real model. `blocks.py` is the table of blocks that ranks exchange, and
`load_trace.py` finds an engine's. `plan.py` decides who sends which blocks to whom, and `schedule.py` derives from a
plan what one rank does.
"""
