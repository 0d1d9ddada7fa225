"""The recipe: reading a YAML file and its overrides into a typed, validated object.

`recipe.py` is the schema and `load.py` reads a recipe; start with these. `yaml_file.py` parses YAML and keeps
the position of every key for messages. `faults.py` defines the errors that the whole launcher raises for
mistakes of the user. `reference.py` generates docs/recipes.md.
"""
