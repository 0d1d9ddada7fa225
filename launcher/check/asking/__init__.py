"""Asks programs of Verst's own, which may import torch: `child.py` runs one, `kept_answers.py` keeps its answer."""
