"""The algorithm as pure functions, of which the recipe chooses one of each kind by dotted path, and its configuration.

`advantages.py` computes the advantages of a step's samples from the metadata of its groups. `losses.py` computes the
loss of each token, `corrections.py` its factor for a rollout policy that differs, and `divergences.py` the KL from the
reference; `tokens.py` is what they may look at. `averages.py` weighs the tokens. `config.py` is the recipe's
`algorithm` section, and `option_uses.py` refuses options of it that nothing would use.
"""
