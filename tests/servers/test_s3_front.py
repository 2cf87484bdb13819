"""The referee of the S3 tests is itself looked at: durable in a directory, exact in its conditions."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.servers.s3_front import Fault, S3Front

ROOT = Path(__file__).parents[2]


def ask(method: str, url: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=body or None, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def serve(folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "tests.servers.s3_front", "--root", str(folder), "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def test_what_it_acknowledged_survives_its_death(tmp_path: Path):
    """Over a directory an object is there again after kill -9."""
    server, url = serve(tmp_path)
    assert ask("PUT", f"{url}/bucket/requests/a.json", b"{}", If_None_Match="*")[0] == 200
    server.kill()
    server.communicate(timeout=120)

    server, url = serve(tmp_path)
    assert ask("GET", f"{url}/bucket/requests/a.json") == (200, b"{}")
    assert ask("PUT", f"{url}/bucket/requests/a.json", b"[]", If_None_Match="*")[0] == 412
    server.terminate()
    server.communicate(timeout=120)


def test_conditions_are_kept_to_the_letter(s3_front: S3Front):
    """412 for a key that exists or an etag that differs, 404 for a key that is gone."""
    url = f"{s3_front.url}/bucket/a%20b%2Bc"
    assert ask("PUT", url, b"1", If_None_Match="*")[0] == 200
    assert ask("PUT", url, b"2", If_None_Match="*")[0] == 412
    assert ask("GET", url) == (200, b"1")
    assert ask("DELETE", url, If_Match='"other"')[0] == 412
    assert ask("DELETE", url, If_Match='"c4ca4238a0b923820dcc509a6f75849b"')[0] == 204
    assert ask("DELETE", url, If_Match='"c4ca4238a0b923820dcc509a6f75849b"')[0] == 404
    assert ask("GET", f"{s3_front.url}/other/key")[0] == 404


@pytest.mark.parametrize(
    ("kind", "status", "is_there"),
    [
        ("slow_down", 503, False),
        ("conflict", 409, False),
        ("broken", 500, False),
        ("broken_after", 500, True),
        ("denied", 403, False),
        ("unsupported", 501, False),
    ],
)
def test_it_misbehaves_as_it_was_told(s3_front: S3Front, kind: str, status: int, is_there: bool):
    """Each fault answers with its status, leaves what it says behind, and is over after its number."""
    url = f"{s3_front.url}/bucket/key"
    s3_front.faults.append(Fault(kind, times=1))
    assert ask("PUT", url, b"1", If_None_Match="*")[0] == status
    assert ask("GET", url)[0] == (200 if is_there else 404)
    assert ask("PUT", url, b"1", If_None_Match="*")[0] == (412 if is_there else 200)
