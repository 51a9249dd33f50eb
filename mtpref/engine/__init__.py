"""The model that runs: weights, recipe, model, the draft/verify loop, sessions. Start with decode/loop.py."""
