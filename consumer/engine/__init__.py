"""The renderer child: continuous batching of unmodified diffusers pipelines on one device.

Tasks come in over stdin and events go out over stdout, as `renderer.protocol` defines them; `python -m consumer.engine`
starts it, and `engine.Engine.step` is its loop.
It is the only room of consumer that imports torch; of the others it may import `renderer` and `models` only.
"""
