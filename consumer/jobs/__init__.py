"""From a claim to a result: prepares requests, lets the renderers draw them, stores images and commits results.

Claims come in by `Jobs.begin`, and the renderers' reports by `Outcomes.on_event` and `Outcomes.on_loss`.
May import infra, schemas and `consumer.renderer`, and never torch: models run in the renderers' processes.
"""
