"""The plain way: a FastAPI route with a lock around the pipeline. `python -m tests.benchmarks.peers.plain PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

from tests.benchmarks.peers.pipeline import Pipeline

app = FastAPI()
pipeline = Pipeline()
lock = asyncio.Lock()


@app.post("/generate")
async def generate(body: dict[str, Any]) -> dict[str, list[str]]:
    async with lock:
        return await asyncio.to_thread(pipeline.draw, body)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
