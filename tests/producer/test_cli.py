"""The command line, run as a process: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.stores.open import open_store
from producer import AsyncClient, Client
from schemas.layout import is_request
from tests.servers.s3_front import S3Front

Cli = Callable[..., subprocess.CompletedProcess[str]]
Worker = Callable[..., Any]
HEAVY = ("torch", "diffusers", "boto3", "botocore", "aiobotocore", "pydantic", "PIL", "watchfiles", "numpy")


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A directory store, made by an earlier submission."""
    folder = tmp_path / "dreamdrop-data"  # the default, as the tests' processes run in tmp_path
    folder.mkdir()
    return str(folder)


def answer_all(store: str, worker: Worker, **fields: Any) -> None:
    async def work() -> None:
        async with open_store(store) as opened:
            for key in [i.key async for i in opened.list("requests/") if is_request(i.key)]:
                await worker(opened, key, **fields)

    asyncio.run(work())


@pytest.mark.parametrize("command", ["", "submit", "replay"])
def test_help_is_light(command: str):
    """Help imports none of the heavy libraries (typer itself uses pydantic for a command's arguments)."""
    heavy = [name for name in HEAVY if not (command and name == "pydantic")]
    code = (
        "import sys\nfrom producer import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {heavy!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    arguments = [sys.executable, "-c", code, *command.split(), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: dreamdrop" in done.stdout


def test_every_kind_of_file_is_submitted(dreamdrop_process: Cli, store: str, tmp_path: Path):
    """JSON, JSON Lines, a table, prompts, a pattern and standard input: one id each."""
    (tmp_path / "a.json").write_text('{"prompt": "a"}')
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    (tmp_path / "c.csv").write_text("prompt,steps\na,3\n")
    (tmp_path / "d.txt").write_text("a\nb\n")
    done = dreamdrop_process("submit", "a.json", "*.jsonl", "c.csv", "d.txt", "-", stdin='{"prompt": "z"}')
    assert (done.returncode, done.stderr) == (0, "")
    ids = done.stdout.split()
    found = {p.name for p in (Path(store) / "requests").iterdir()}
    kinds = [".json", ".jsonl", ".jsonl", ".jsonl", ".json"]
    assert found == {f"{id}{kind}" for id, kind in zip(ids, kinds, strict=True)}


def test_one_fault_and_nothing_is_sent(dreamdrop: Cli, store: str, tmp_path: Path):
    """All faults are reported at once, by file, with line and column; the exit code is 2."""
    (tmp_path / "good.json").write_text('{"prompt": "a"}')
    (tmp_path / "typo.json").write_text('{"prompt": "a", "stepps": 3}')
    (tmp_path / "broken.json").write_text('{"prompt": "a",\n "steps": }')
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    done = dreamdrop("submit", "*.json", "rows.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    for text in (
        "nothing was sent, because 3 files have faults",
        "typo.json: stepps is an unknown field; did you mean 'steps'?",
        "broken.json: not valid JSON at line 2, column 11",
        "rows.jsonl: line 2: prompt is empty; say what to draw",
    ):
        assert text in done.stderr
    assert not (Path(store) / "requests").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["submit", "nowhere.json"], 2, "there is no file 'nowhere.json'"),
        (["submit", "*.nothing"], 2, "no file matches"),
        (["imagine", ""], 2, "prompt is empty"),
        (["imagine", "x", "--size", "12x"], 2, "--size is '12x'"),
        (["imagine", "x", "--image", "no.png"], 2, "cannot read the picture 'no.png': No such file"),
        (["status", "nobody"], 2, "there is no request 'nobody'"),
        (["fetch", "nobody"], 2, "there is no request 'nobody'"),
        (["cancel", "nobody"], 2, "there is no request 'nobody'"),
        (["replay", "no.png"], 2, "cannot read the picture 'no.png'"),
        (["status", "--store", "./elsewhere"], 3, "there is no store './elsewhere'"),
        (["status", "--store", "ftp://x"], 3, "is not a store: give a directory"),
        (["status", "--store", "s3:/bucket"], 3, "write s3://..."),
        (["status", "--store", "s3://bucket"], 3, "no usable AWS credentials"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(
    dreamdrop: Cli, store: str, arguments: list[str], code: int, text: str
):
    """Never a traceback: what is wrong, and an exit code that scripts can use."""
    nowhere = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "x",
        "AWS_SHARED_CREDENTIALS_FILE": "x",
    }
    done = dreamdrop(*arguments, **nowhere)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_for_programs_are_json(dreamdrop: Cli, store: str, tmp_path: Path):
    """With --json an error is an object on standard output, and standard error is empty."""
    (tmp_path / "broken.json").write_text('{"prompt": }')
    done = dreamdrop("submit", "broken.json", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, done.stderr) == (2, "")
    assert (error["code"], error["line"], error["column"]) == ("invalid_json", 1, 12)


def test_waiting_saves_pictures_and_tells_failures(
    dreamdrop: Cli, store: str, tmp_path: Path, worker: Worker
):
    """--out saves below `<id>/`; a failure is printed with its reason, and the exit code is 1."""
    (tmp_path / "good.json").write_text('{"prompt": "a", "id": "good", "number_of_images": 2}')
    (tmp_path / "bad.json").write_text('{"prompt": "b", "id": "bad"}')
    with Client(store) as dream:
        dream.submit(tmp_path / "good.json")
    answer_all(store, worker)
    done = dreamdrop("submit", "good.json", "-o", "out")
    assert (done.returncode, done.stdout.split()) == (0, ["out/good/0.png", "out/good/1.png"])
    assert "1 succeeded; 2 images" in done.stderr

    with Client(store) as dream:
        dream.submit(tmp_path / "bad.json")
    answer_all(store, worker, status="failed")
    done = dreamdrop("submit", "good.json", "bad.json", "--wait")
    assert done.returncode == 1
    assert done.stdout.split() == ["good", "bad"], "what was not saved can still be fetched, by its id"
    assert "bad.json" in done.stderr
    assert "it broke" in done.stderr
    told = json.loads(dreamdrop("submit", "bad.json", "--wait", "--json").stdout)["requests"][0]
    assert (told["status"], told["failure"]["message"]) == ("failed", "it broke")


def test_waiting_in_vain_ends_in_time(dreamdrop_process: Cli, store: str):
    """Without a worker: a hint how to start one, exit code 4, and the request stays."""
    done = dreamdrop_process("imagine", "a cat", "--timeout", "3.6")
    assert done.returncode == 4
    assert "no worker is running; start one with: dreamdrop worker --store ./dreamdrop-data" in done.stderr
    assert "nothing is lost" in done.stderr
    assert len(list((Path(store) / "requests/express").iterdir())) == 1


def test_the_life_of_a_request(dreamdrop: Cli, store: str, worker: Worker, tmp_path: Path):
    """status, watch, fetch, cancel and models, for people and for programs."""
    id = dreamdrop("submit", "-", "--id", "tom", stdin='{"prompt": "a cat"}').stdout.strip()
    assert id == "tom"
    assert "queued" in dreamdrop("status", "tom").stdout
    assert json.loads(dreamdrop("status", "tom", "--json").stdout)["position"] == 0
    assert "did you mean 'tom'" in dreamdrop("status", "tim").stderr
    assert json.loads(dreamdrop("fetch", "tom", "--json").stdout)["error"]["code"] == "StillWorking"
    answer_all(store, worker)
    assert "1 ended" in dreamdrop("status").stdout
    counts = json.loads(dreamdrop("status", "--json").stdout)["counts"]
    assert counts == {"queued": 0, "processing": 0, "over": 1, "workers": 0}
    assert dreamdrop("watch", "tom").returncode == 0
    assert json.loads(dreamdrop("watch", "tom", "--json").stdout)["status"] == "succeeded"
    assert dreamdrop("fetch", "tom", "-o", "out").stdout.split() == ["out/tom/0.png"]
    assert (tmp_path / "out/tom/0.png").is_file()
    assert "had ended already" in dreamdrop("cancel", "tom").stderr

    dreamdrop("submit", "-", "--id", "ben", stdin='{"prompt": "a dog"}')
    assert "ben is canceled" in dreamdrop("cancel", "ben").stderr
    assert dreamdrop("fetch", "ben").returncode == 1
    assert "start one with" in dreamdrop("models").stderr
    models = json.loads(dreamdrop("models", "--json").stdout)
    assert models == {"models": [], "controlnets": [], "ip_adapters": []}


def test_a_dropped_file_is_named_by_its_path(dreamdrop: Cli, store: str):
    """A name that is not an id, such as a file name with a space, is found by the path that the user knows."""
    folder = Path(store) / "requests/my cats"
    folder.mkdir(parents=True)
    (folder / "tom & co.json").write_text('{"prompt": "a cat"}')
    here = str(folder / "tom & co.json")
    for name in ("my cats/tom & co", "my cats/tom & co.json", "requests/my cats/tom & co.json", here):
        assert "queued" in dreamdrop("status", name).stdout
    assert "is canceled" in dreamdrop("cancel", "my cats/tom & co").stderr


def test_a_corrected_file_is_found_under_its_old_name(dreamdrop: Cli, store: str, worker: Worker):
    """`status` of a name leads to the result of what was dropped under it later."""
    requests = Path(store) / "requests"
    requests.mkdir()
    (requests / "tom.json").write_text('{"prompt": "a cat"}')
    answer_all(store, worker, status="failed")
    assert "another request" not in dreamdrop("status", "tom").stderr
    (requests / "tom.json").write_text('{"prompt": "a better cat"}')
    answer_all(store, worker, id="tom~0123abcd")
    done = dreamdrop("status", "tom")
    assert "failed" in done.stdout
    assert done.stderr == "another request was dropped under this name; see tom~0123abcd\n"


def test_a_batch_is_followed_by_its_rows(dreamdrop: Cli, store: str, worker: Worker, tmp_path: Path):
    """The summary counts rows, and a batch that failed as a whole ends the wait for them."""
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    dreamdrop("submit", "b.jsonl", "--id", "many")
    answer_all(store, worker, status="failed")
    done = dreamdrop("submit", "b.jsonl", "--id", "many", "--wait", "--timeout", "120")
    assert done.returncode == 1
    assert "it broke" in done.stderr


def test_the_same_on_a_bucket(dreamdrop: Cli, s3_front: S3Front, worker: Worker):
    """submit, status, fetch and cancel through an S3 server."""
    s3 = {
        "AWS_ENDPOINT_URL_S3": s3_front.url,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "DREAMDROP_STORE": "s3://bucket",
    }
    assert dreamdrop("submit", "-", "--id", "tom", stdin='{"prompt": "a cat"}', **s3).stdout.strip() == "tom"
    assert "queued" in dreamdrop("status", "tom", **s3).stdout

    async def answer() -> None:
        async with AsyncClient("s3://bucket") as client:
            await worker(client.store, "requests/tom.json")

    asyncio.run(answer())
    assert dreamdrop("fetch", "tom", **s3).stdout.split() == ["tom/0.png"]
    done = dreamdrop("status", "--store", "s3://nowhere", **s3)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)


def test_a_command_whose_library_is_missing_says_what_to_install(capsys: pytest.CaptureFixture[str]):
    """The entry point stays in the list of commands, and tells how to get it."""
    from importlib.metadata import EntryPoint

    import typer

    from producer.cli import GROUP, mount

    root = typer.Typer()
    mount(root, EntryPoint("worker", "a_library_that_is_not_there.cli:app", GROUP))
    root.command("other")(lambda: None)
    with pytest.raises(SystemExit) as caught:
        root(["worker"])
    assert caught.value.code == 2
    assert "pip install -c constraints.txt -e '.[consumer]'" in capsys.readouterr().err


def test_every_entry_point_loads():
    """What the package announces as commands can be mounted."""
    from importlib.metadata import entry_points

    import typer

    from producer.cli import GROUP, mount

    root = typer.Typer()
    for found in entry_points(group=GROUP):
        assert found.load() is not None
        mount(root, found)
