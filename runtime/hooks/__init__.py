"""Loads the functions of a user, such as rewards and filters, that a recipe names (`dotted.py`)."""
