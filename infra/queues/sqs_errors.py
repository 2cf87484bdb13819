"""Errors of a queue, as messages that say what to do.

The AWS library's messages are not repeated: they may hold URLs with passwords in them.
"""

from __future__ import annotations

from botocore import exceptions as boto

from infra.aws import code_of, reason_of, shown, status_of
from schemas.errors import QueueUnavailable, Unsupported

_KEYS = (
    "AuthFailure",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "InvalidToken")
_SKEWED = ("RequestExpired", "RequestTimeTooSkewed")
_THROTTLED = ("OverLimit", "RequestThrottled", "ThrottlingException", "Throttling", "SlowDown")
_ACTIONS = (
    "sqs:ReceiveMessage, sqs:ChangeMessageVisibility, sqs:DeleteMessage, sqs:SendMessage and "
    "sqs:GetQueueAttributes"
)


def queue_code_of(error: Exception) -> str:
    """A queue service's error code without the old namespace, such as "NonExistentQueue"."""
    return code_of(error).rpartition(".")[2].rpartition("#")[2]


def is_missing(error: Exception) -> bool:
    return queue_code_of(error) in ("NonExistentQueue", "QueueDoesNotExist")


def is_denied(error: Exception) -> bool:
    return queue_code_of(error) in ("AccessDenied", "AccessDeniedException", "AccessDeniedFault")


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, boto.ClientError):
        return status_of(error) >= 500 or status_of(error) in (408, 429) or queue_code_of(error) in _THROTTLED
    return isinstance(error, (boto.HTTPClientError, boto.ConnectionError)) or not isinstance(
        error, boto.BotoCoreError
    )


def translated(error: Exception, what: str, url: str, endpoint: str) -> QueueUnavailable | Unsupported:
    """Our error for one of the AWS library's: what failed, why, and what to do."""
    if is_missing(error):
        return Unsupported(
            f"{what}: there is no queue {shown(url)} at {shown(endpoint)}: correct the URL (DREAMDROP_QUEUE), or "
            "create the queue with `dreamdrop setup queue`"
        )
    if is_denied(error):
        return Unsupported(f"{what}: access denied: give this identity {_ACTIONS} on {shown(url)}")
    return QueueUnavailable(f"{what}: {_reason(error, shown(endpoint))}")


def _reason(error: Exception, endpoint: str) -> str:
    if not isinstance(error, boto.ClientError):
        return reason_of(error, endpoint, "AWS_ENDPOINT_URL_SQS")
    code = queue_code_of(error)
    if code in _EXPIRED:
        return "the session has expired or its token is refused: sign in again"
    if code in _SKEWED:
        return "this machine's clock is wrong: set it (NTP)"
    if code in _KEYS:
        return "the keys are refused: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the queue's region"
    if code in _THROTTLED:
        return "the queue asks for fewer requests; the call will be tried again later"
    retried = "; the call will be tried again later" if is_transient(error) else ""
    return f"{endpoint} answered {status_of(error)} {code}{retried}"
