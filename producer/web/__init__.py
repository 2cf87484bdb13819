"""The facade: HTTP in front of a store, for browsers and for programs that wait for their pictures.

Requests come in through four packages (`api`, `a1111`, `openai`, `pages`), which translate their own formats into
manifests and results into theirs. They stand on the modules of this folder, above all `facade`, and do not import
one another; this package imports the rest of `producer`, `infra` and `schemas`.
"""
