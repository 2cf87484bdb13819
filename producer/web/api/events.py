"""Takes the HTTP notifications of object stores that cannot send to SQS (MinIO, RustFS, Ceph), and queues them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel

from infra.queues.message import MAX_BYTES, is_sendable
from infra.stores.s3_location import S3Location
from producer.web.api_keys import caller_with, key_in
from producer.web.caller import FacadeOf, body, facade_of
from producer.web.openapi import errors, invalid, problem, request_body
from schemas import layout
from schemas.errors import Rejected
from schemas.events import Created, Ignored, Unknown, decode

router = APIRouter(tags=["Events"])

_EXAMPLE = {
    "EventName": "s3:ObjectCreated:Put",
    "Key": "my-bucket/requests/cat.json",
    "Records": [
        {
            "eventVersion": "2.0",
            "eventName": "s3:ObjectCreated:Put",
            "s3": {"bucket": {"name": "my-bucket"}, "object": {"key": "requests%2Fcat.json"}},
        }
    ],
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: problem("The token is missing, or another one."),
    404: problem("This server takes no events: it has no token for them."),
    413: invalid("The body is larger than a queue's message may be."),
    415: problem("The body has a Content-Encoding that is not read."),
    422: invalid("The body is not an event of an object store, or is about another bucket."),
    **errors(503),
}


class Taken(BaseModel):
    """What became of an event's records."""

    queued: int  # records that name a request; workers get them by the queue
    ignored: dict[str, int]  # records that ask for nothing, by reason


def sender_of(request: Request) -> None:
    """Let in a store that has a token. Raises 404 where the settings have none, and 401."""
    tokens = facade_of(request).settings.event_tokens
    if not tokens:
        raise HTTPException(404, "this server takes no events: set DREAMDROP_EVENTS_TOKEN")
    if caller_with(key_in(request.headers), tokens) is None:
        text = "send the token of DREAMDROP_EVENTS_TOKEN as `Authorization: Bearer ...`, or as the URL's password"
        challenge = 'Basic realm="Dreamdrop events", charset="UTF-8"'
        raise HTTPException(401, text, {"WWW-Authenticate": challenge})


Sender = Annotated[None, Depends(sender_of)]


@router.get("/events", include_in_schema=False, status_code=204)
async def look(sender: Sender) -> Response:
    """MinIO asks by HEAD whether somebody listens, before it sends."""
    return Response(status_code=204)


@router.post(
    "/events",
    status_code=202,
    responses=_RESPONSES,
    openapi_extra=request_body({"type": "object"}, example=_EXAMPLE),
    summary="Queue the event of an object store that cannot send to a queue itself",
)
async def take(request: Request, sender: Sender, facade: FacadeOf) -> Taken:
    """For the webhooks of MinIO and RustFS and the push endpoints of Ceph.

    An event that names a request in this server's bucket goes to the queue as it is. What is no event is
    refused, so that the store keeps it or says so in its log.
    """
    text = _text(await body(request, MAX_BYTES))
    location = S3Location.of(facade.settings.store)
    assert location is not None, "checked when the settings were read"
    express: list[bool] = []  # for each request that is named: whether it lies in the express lane
    ignored = Counter[str]()
    for item in decode(text):
        match item:
            case Ignored(reason=reason):
                ignored[reason] += 1
            case Created(bucket=bucket) if bucket != location.bucket:
                fault = (
                    f"it is about bucket {bucket[:80]!r}, and this server is in front of {location.bucket!r}"
                )
                raise Rejected("invalid_manifest", fault)
            case Created(keys=keys):
                named = [
                    (key, prefix) for key in keys if (prefix := layout.store_of_request(key)) is not None
                ]
                if named:
                    express.append(named[0][0].removeprefix(named[0][1]).startswith(layout.EXPRESS))
                else:
                    ignored["not_a_request"] += 1
            case Unknown(reason=reason):
                raise Rejected("invalid_manifest", f"it is not an event that is known here: {reason}")
            case _:
                fault = "it is a request, not an event of an object store; send it to POST /jobs"
                raise Rejected("invalid_manifest", fault)
    if express:
        queues = facade.settings.queues
        queue = await facade.client.queues.get(queues[0] if all(express) else queues[-1])
        await queue.send([text])
    return Taken(queued=len(express), ignored=dict(ignored))


def _text(raw: bytes) -> str:
    """The body as a queue can carry it. Raises `Rejected`."""
    try:
        text = raw.decode("utf-8-sig")
        return text if is_sendable(text) or not text.strip() else json.dumps(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise Rejected("invalid_json", "it is not JSON; an event of an object store is") from error
