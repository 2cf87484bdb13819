"""LitServe with its defaults. `python -m tests.benchmarks.peers.litserve_app PORT`."""

# Annotations are evaluated here: LitServe reads them to find the body.

import sys
from typing import Any

import litserve

from tests.benchmarks.peers.pipeline import Pipeline


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = Pipeline()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def predict(self, body: dict[str, Any]) -> dict[str, list[str]]:
        return self.pipeline.draw(body)

    def encode_response(self, output: dict[str, list[str]]) -> dict[str, list[str]]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/generate"), accelerator="cpu")
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
