"""What tests of webhooks share: secrets, an event, and a webhook to a receiver on loopback."""

from __future__ import annotations

import base64

from consumer.announce.allow_list import Hosts
from consumer.announce.webhook import Secrets, Webhook
from schemas.completion import Completion, completion
from schemas.result import Frozen, Result
from tests.servers.webhook_receiver import Receiver

KEYS = [bytes(range(32)), bytes(range(100, 140))]
SECRETS = [f"whsec_{base64.b64encode(key).decode()}" for key in KEYS]
NOW = 1_700_000_000.5  # seconds since 1970
PATH = "/hooks/T0PS3CRET?token=hush"


def event(id: str = "cats/a") -> Completion:
    made = Result(id=id, status="succeeded", fingerprint="ab", request=Frozen(text="{}"))
    return completion(made, source="s3://bucket")


def webhook(receiver: Receiver, *, secrets: str = SECRETS[0], url: str = "") -> Webhook:
    hosts = Hosts(f"127.0.0.1:{receiver.port} localhost:{receiver.port}")
    return Webhook(url or receiver.url + PATH, Secrets(secrets), hosts, now=lambda: NOW)
