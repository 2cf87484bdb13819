"""The OpenAPI document makes a client that works, by the generator that Python people take."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.interop.clients import Clients
from tests.interop.conftest import Figures
from tests.producer.facade import facade, ready, worker


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A facade with a worker."""
    place = tmp_path_factory.mktemp("openapi") / "store"
    with worker(place), facade(place) as listening:
        ready(listening)
        yield listening


@pytest.fixture(scope="module")
def generated(address: str, clients: Clients, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The client, and what its generator printed."""
    folder = tmp_path_factory.mktemp("generated")
    document = folder / "openapi.json"
    document.write_bytes(httpx.get(f"{address}/openapi.json").content)
    command = [clients["openapi-python-client"], "generate", "--path", str(document), "--meta", "none"]
    done = subprocess.run(
        [*command, "--output-path", str(folder / "made")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={"PATH": str(clients.home / "bin"), "NO_COLOR": "1", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


def test_a_client_is_generated_with_one_warning(
    generated: tuple[Path, str], clients: Clients, figures: Figures
):
    """Nothing of the document is left out but the text form of a batch, which that generator cannot send."""
    folder, said = generated
    warnings = said.count("WARNING")
    paths = json.loads((folder / "openapi.json").read_bytes())["paths"]
    count, calls = len(paths), sum(map(len, paths.values()))
    maker = f"openapi-python-client {clients.version('openapi-python-client')}"
    figures("a generated client", maker, f"{count} paths", f"{calls} calls, {warnings} warning")
    assert warnings == 1, said[:4000]
    assert "Unsupported content type text/plain" in said


def test_every_operation_is_a_function_of_the_generated_client(generated: tuple[Path, str], clients: Clients):
    """Each call of the document has a module, and each module can be imported."""
    folder, _ = generated
    paths = json.loads((folder / "openapi.json").read_bytes())["paths"]
    operations = [one for path in paths.values() for one in path.values()]
    modules = [path for path in (folder / "made" / "api").rglob("*.py") if path.name != "__init__.py"]
    assert len(modules) >= len(operations)
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    names = [str(path.relative_to(folder).with_suffix("")).replace("/", ".") for path in modules]
    done = subprocess.run(
        [str(clients.home / "bin" / "python"), "-c", code, *names], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


DRAWS = """
import importlib, pathlib, sys
from io import BytesIO
from made import Client
from made.models import Problem, Text2Img
from made.types import File

def call(name):
    [path] = [path for path in pathlib.Path("made/api").rglob("*.py") if path.stem == name]
    return importlib.import_module(".".join(path.with_suffix("").parts))

client = Client(base_url=sys.argv[1])
body = Text2Img(prompt="a red circle", steps=1, width=64, height=64)
drawn = call("generate").sync(client=client, body=body)
job = call("get_job").sync(client=client, id=drawn.id)
assert job.status == "succeeded" and job.images[0].width == 64, job
picture = call("get_image").sync(client=client, id=drawn.id, index=0)
assert picture.payload.read().startswith(b"\\x89PNG"), picture
queued = call("put_job").sync(client=client, id="mine", body=body)
assert queued.id == "mine", queued
unknown = call("get_job").sync(client=client, id="nobody")
assert isinstance(unknown, Problem) and "nobody" in unknown.detail, unknown
lines = BytesIO(b'{"prompt": "a", "steps": 1}\\n{"prompt": "b", "steps": 1}\\n')
batch = call("queue_batch").sync(client=client, body=File(payload=lines))
assert batch.status == "queued", batch
assert call("get_batch").sync(client=client, id=batch.id).id == batch.id
assert call("readyz").sync(client=client).status == "ready"
print(len(drawn.images))
"""


def test_the_generated_client_draws(generated: tuple[Path, str], address: str, clients: Clients):
    """Calls give objects with the fields that they are described with, for pictures, batches and errors."""
    folder, _ = generated
    script = folder / "draws.py"
    script.write_text(DRAWS)
    command = [str(clients.home / "bin" / "python"), str(script), address]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "1\n"
