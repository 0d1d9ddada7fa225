"""A trainer rank: it trains one rank's part of a Megatron-Core model by the controller's step plans.

Open `trainer.py` for the training step and `rank.py` for the process around it. `parallel.py` holds a rank's
process groups and coordinates, `config.py` the recipe's sections `trainer` and `checkpoint`.

The rooms: `model/` builds the Megatron model and its optimizer, `share/` brings each rank its share of a
step's samples, `replay/` replays the engine's choices in the model, `step/` has the parts of a step,
`checkpoint/` saves and restores all of it, and `weights/` sends the weights to the engines.
"""
