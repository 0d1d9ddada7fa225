"""How state crosses between trainer and rollout: weights (mapping, layout, transports) and routing replay.

Knows torch and nothing of the rest of Verst.
"""
