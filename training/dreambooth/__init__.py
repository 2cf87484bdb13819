"""The torch side of DreamBooth: what happens in the process that trains.

Start with `loop.py`. It may import training's recipe, pictures and buckets, schemas and infra.
"""
