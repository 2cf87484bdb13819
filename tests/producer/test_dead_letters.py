"""Dead letters: what they are, why nobody could use them, and the way back."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from infra.queues.sqs import Message
from producer.checks.dead_letters import read
from producer.commands.show import dead_letters
from schemas.events import reference
from tests.cloud import Cloud, wait_for
from tests.worker_process import worker as worker_process

Cli = Callable[..., subprocess.CompletedProcess[str]]
CAT = {"prompt": "a cat", "steps": 1, "seed": 3}
WORDS = st.sampled_from(
    ["Records", "s3", "bucket", "name", "object", "key", "reference", "prompt", "Message", "x"]
)
JSON = st.recursive(st.text(max_size=9) | st.integers(), lambda v: st.dictionaries(WORDS, v, max_size=4))


def event(bucket: str, key: str) -> str:
    """What S3 says of a new object."""
    record = {
        "eventVersion": "2.5",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
    }
    return json.dumps({"Records": [record]})


class Letters:
    """A queue whose dead-letter queue holds some messages, and the commands on it."""

    def __init__(self, dreamdrop: Cli, cloud: Cloud) -> None:
        self._dreamdrop = dreamdrop
        self.cloud = cloud
        self.queue, self.dead = cloud.pair()

    def add(self, *bodies: str) -> list[str]:
        sent = [self.cloud.sqs.send_message(QueueUrl=self.dead, MessageBody=body) for body in bodies]
        return [str(message["MessageId"]) for message in sent]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        options = ["--queue", self.queue, "--store", self.cloud.store]
        return self._dreamdrop("dead-letters", *words, *options, **self.cloud.environment())

    def listed(self) -> list[dict[str, Any]]:
        done = self.run("list", "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["messages"])


@pytest.fixture
def letters(dreamdrop: Cli, cloud: Cloud) -> Letters:
    """An empty pair of queues."""
    return Letters(dreamdrop, cloud)


def test_each_dead_letter_says_what_it_is_and_why_it_was_not_used(letters: Letters):
    """Texts, faulty manifests, other buckets' events; reading leaves all of them where they are."""
    ids = letters.add(
        "hello?",
        json.dumps(CAT | {"steps": "many"}),
        json.dumps(CAT),
        event("elsewhere", "requests/a.json"),
        event(letters.cloud.bucket, "requests/a+b.json"),
        reference("notes/a.json"),
    )
    found = {letter["id"]: (letter["what"], letter["why"]) for letter in letters.listed()}
    assert found.keys() == set(ids)
    text, faulty, good, other, lost, note = (found[id] for id in ids)
    assert text == ("unknown", "the message is not JSON at line 1, column 1")
    assert faulty[0] == "a manifest"
    assert "steps" in faulty[1]
    assert good == ("a manifest: 'a cat'", "")
    assert other[1] == f"it is from another bucket than {letters.cloud.bucket}"
    assert lost == (f"an event for s3://{letters.cloud.bucket}/requests/a b.json", "")
    assert "is not a request" in note[1]

    table = letters.run("list").stdout
    assert all(id in table for id in ids)
    assert letters.cloud.depth(letters.dead) == 6
    assert len(letters.listed()) == 6, "looking gave them back at once"


def test_one_dead_letter_is_shown_whole(letters: Letters):
    """By the beginning of its id; its text is indented, and the rest goes to standard error."""
    (id,) = letters.add(json.dumps(CAT))
    done = letters.run("show", id[:13])
    assert json.loads(done.stdout) == CAT
    assert "a manifest: 'a cat'; received" in done.stderr
    assert json.loads(letters.run("show", id, "--json").stdout)["body"] == json.dumps(CAT)

    missing = letters.run("show", "no-such-id")
    assert missing.returncode == 3
    assert "there is no dead letter 'no-such-id'" in missing.stderr


def test_a_dead_letter_goes_back_to_its_queue(letters: Letters):
    """One by its id, then the rest with --all; the texts are unchanged."""
    first, *_ = letters.add("one", "two", "three")
    done = letters.run("retry", first)
    assert done.returncode == 0, done.stderr
    assert letters.cloud.take(letters.queue) == ["one"]
    assert letters.cloud.depth(letters.dead) == 2

    assert len(json.loads(letters.run("retry", "--all", "--json").stdout)["put_back"]) == 2
    assert sorted(letters.cloud.take(letters.queue)) == ["one", "three", "two"]
    assert letters.cloud.depth(letters.dead) == 0
    assert "there are no dead letters" in letters.run("retry", "--all").stderr
    assert letters.run("list").stdout.strip() == "there are no dead letters"


def test_more_than_one_call_takes_are_all_found(letters: Letters):
    """One receive returns at most ten; a look returns all."""
    letters.add(*(f"text {n}" for n in range(23)))
    assert len(letters.listed()) == 23


def test_what_is_missing_is_said(letters: Letters, cloud: Cloud, dreamdrop: Cli):
    """No queue, no dead-letter queue, neither an id nor --all: each has its own message."""
    plain = cloud.queue()
    done = dreamdrop("dead-letters", "list", "--queue", plain, **cloud.environment())
    assert done.returncode == 3
    assert "has no dead-letter queue" in done.stderr
    assert "name the workers' queue" in dreamdrop("dead-letters", "list").stderr
    assert "or --all" in letters.run("retry").stderr


def test_a_put_back_request_is_drawn(letters: Letters, tmp_path: Path):
    """From the dead-letter queue to a picture."""
    letters.add(json.dumps(CAT | {"id": "back", "width": 64, "height": 64}))
    assert letters.run("retry", "--all").returncode == 0
    with worker_process(letters.cloud.store, "--queue", letters.queue):
        wait_for(lambda: letters.cloud.keys("results/back/result.json"), "no result", 60)


@given(st.text() | JSON.map(json.dumps))
def test_anything_can_be_described(text: str):
    """No message makes reading fail, and none can move the terminal's cursor."""
    letter = read(Message("id", "receipt", text, 1))
    assert letter.what
    assert all(c.isprintable() or c in "\n\t" for c in letter.what + letter.why)


def test_a_strangers_text_cannot_move_the_cursor(letters: Letters):
    """Escape sequences in keys and texts are shown as a sign that something was there."""
    (key, text) = letters.add(event("b\x1b[2J", "requests/\x1b[31m.json"), "C1 is \x85 here")
    assert "\x1b[2J" not in letters.run("list").stdout
    assert "C1 is \N{REPLACEMENT CHARACTER} here" in letters.run("show", text).stdout
    assert "\x1b" not in letters.run("show", key).stdout


def test_a_dead_letters_key_is_shown_whole_on_a_narrow_terminal():
    """A long key is broken into lines: its end tells one from the next."""
    key = "requests/2026/autumn/campaign/some-long-name-of-a-file-0123456789.json"
    letter = read(Message("5" * 36, "receipt", json.dumps({"reference": key}), 4))
    console = Console(width=80, file=io.StringIO())
    console.print(dead_letters([letter]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert key in "".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
