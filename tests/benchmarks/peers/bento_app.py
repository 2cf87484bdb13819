"""BentoML with its defaults. `python -m tests.benchmarks.peers.bento_app PORT`."""

from __future__ import annotations

import sys
from typing import Any

import bentoml

from tests.benchmarks.peers.pipeline import Pipeline


@bentoml.service(traffic={"timeout": 120})
class Painter:
    def __init__(self) -> None:
        self.pipeline = Pipeline()

    @bentoml.api(route="/generate")
    def generate(self, body: dict[str, Any]) -> dict[str, list[str]]:
        return self.pipeline.draw(body)


if __name__ == "__main__":
    bentoml.serve("tests.benchmarks.peers.bento_app:Painter", port=int(sys.argv[1]), blocking=True)
