"""The OpenAPI document makes a client that works, by the generator that Python people take."""

from __future__ import annotations

import json
import re
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


def test_a_client_is_generated_without_a_warning(
    generated: tuple[Path, str], clients: Clients, figures: Figures
):
    """Nothing of the document is left out."""
    folder, said = generated
    warnings = said.count("WARNING")
    count = len(json.loads((folder / "openapi.json").read_bytes())["paths"])
    maker = f"openapi-python-client {clients.version('openapi-python-client')}"
    figures("a generated client", maker, f"{count} paths", f"{warnings} warnings")
    assert warnings == 0, said[:4000]


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


def test_the_generated_client_draws(generated: tuple[Path, str], address: str, clients: Clients):
    """`POST /generate/` and `GET /jobs/{id}` give objects with the fields that they are described with."""
    folder, _ = generated
    script = folder / "draws.py"
    script.write_text(
        "import importlib, pathlib, sys\n"
        "from made import Client\n"
        "def call(word):\n"
        "    [path] = [p for p in pathlib.Path('made/api').rglob('*.py') if p.stem == word]\n"
        "    return importlib.import_module('.'.join(path.with_suffix('').parts))\n"
        "client = Client(base_url=sys.argv[1])\n"
        "names = sys.argv[2:]\n"
        "models = importlib.import_module('made.models')\n"
        "body = models.Text2Img(prompt='a red circle', steps=1, width=64, height=64)\n"
        "drawn = call(names[0]).sync(client=client, body=body)\n"
        "job = call(names[1]).sync(client=client, id=drawn.id)\n"
        "assert job.status == 'succeeded', job\n"
        "print(len(drawn.images), drawn.id)\n"
    )
    paths = json.loads((folder / "openapi.json").read_bytes())["paths"]
    names = [paths["/generate/"]["post"]["operationId"], paths["/jobs/{id}"]["get"]["operationId"]]
    modules = [re.sub("_+", "_", name).strip("_") for name in names]  # as the generator calls them
    command = [str(clients.home / "bin" / "python"), str(script), address, *modules]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("1 ")
