"""The models that a worker serves: `cards` says by name where weights lie and what a model is made for.

The parent looks a model up to validate a request, the engine to load it; `doodle/` holds the bundled model's weights.
It may import schemas only, and never torch.
"""
