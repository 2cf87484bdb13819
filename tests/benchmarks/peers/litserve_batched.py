"""LitServe with batches: requests that agree share one call of the pipeline. `... litserve_batched PORT`."""

# Annotations are evaluated here: LitServe reads them to find the body.

import base64
import io
import sys
from typing import Any

import litserve

from tests.benchmarks.peers.pipeline import Pipeline

_ROWS = 16  # of a UNet call, as ours; guidance takes two for each image


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = Pipeline()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, bodies: list[dict[str, Any]]) -> list[dict[str, list[str]]]:
        alike: dict[int, list[int]] = {}
        for place, body in enumerate(bodies):
            alike.setdefault(body["steps"], []).append(place)
        answers: list[Any] = [None] * len(bodies)
        for places in alike.values():
            pictures = self.pipeline.draw_together([bodies[place] for place in places])
            for place, picture in zip(places, pictures, strict=True):
                out = io.BytesIO()
                picture.save(out, "PNG")
                answers[place] = {"images": [base64.b64encode(out.getvalue()).decode("ascii")]}
        return answers

    def unbatch(self, output: list[dict[str, list[str]]]) -> list[dict[str, list[str]]]:
        return output

    def encode_response(self, output: dict[str, list[str]]) -> dict[str, list[str]]:
        return output


if __name__ == "__main__":
    api = Api(api_path="/generate", max_batch_size=_ROWS // 2, batch_timeout=0.05)
    litserve.LitServer(api, accelerator="cpu").run(
        port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
