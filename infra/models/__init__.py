"""What models there are: cards by name, versions that are published in the store, the cache of them, model files.

`doodle/` holds the bundled model's weights. No torch here.
"""
