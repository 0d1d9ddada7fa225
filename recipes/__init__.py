"""The bundled recipes: `quickstart.yaml` and `tiny-moe.yaml`. `models/` has a small file for each model family."""
