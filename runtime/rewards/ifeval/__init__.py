"""The 25 kinds of verifiable instructions of IFEval (arXiv:2311.07911), each a pure function of a text.

`keywords.py`, `counts.py`, `forms.py` and `language.py` have the checks, `registry.py` their names and arguments, and
`reward.py` the reward. Names and arguments are those of the data set google/IFEval. Two kinds are not measured as in
the paper's program, which uses packages for it: sentences are split here by rules (`words.py`), and a language is told
by its script and its function words (`language.py`).
"""
