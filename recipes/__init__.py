"""YAML recipes, and in `models/` one small plug-in file per architecture family."""
