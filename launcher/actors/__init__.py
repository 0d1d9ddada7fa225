"""Apps of actors: services and programs of your own that use Verst's actors and train no model (docs/actors.md).

`app.py` reads an app's YAML file and makes its plan, and `commands.py` implements `verst actors run` and
`submit`.
"""
