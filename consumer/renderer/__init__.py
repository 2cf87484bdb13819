"""The parent's side of the renderer: it starts a child process per device, and talks to it over a pipe.

Tasks come in through `process.Renderer.submit`; events and losses go out through its two callbacks, and `protocol`
holds every message that parent and child exchange.
It may import schemas, infra and nothing else of consumer, and never torch: the child's side is `consumer.engine`.
"""
