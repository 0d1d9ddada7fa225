"""The algorithm as pure functions: advantages, losses and their configuration.

`advantages.py` computes the advantages of a prompt group from its rewards, and `losses.py` the loss of each token. The
recipe chooses one function of each by dotted path. `config.py` is the recipe's `algorithm` section.
"""
