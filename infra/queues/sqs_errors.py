"""What went wrong between us and a queue, in words that say what to do.

As with buckets, foreign messages are not repeated: they may hold addresses with passwords in them.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from botocore import exceptions as boto

from infra.aws import CREDENTIALS, HOW_TO_SIGN_IN, code_of, status_of
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


def word_of(error: Exception) -> str:
    """A queue service's word for an error, without the old name space: "NonExistentQueue"."""
    return code_of(error).rpartition(".")[2].rpartition("#")[2]


def is_missing(error: Exception) -> bool:
    return word_of(error) in ("NonExistentQueue", "QueueDoesNotExist")


def is_denied(error: Exception) -> bool:
    return word_of(error) in ("AccessDenied", "AccessDeniedException", "AccessDeniedFault")


def is_transient(error: Exception) -> bool:
    """Whether the same call may do better in a while."""
    if isinstance(error, boto.ClientError):
        return status_of(error) >= 500 or status_of(error) in (408, 429) or word_of(error) in _THROTTLED
    return isinstance(error, (boto.HTTPClientError, boto.ConnectionError)) or not isinstance(
        error, boto.BotoCoreError
    )


def translated(error: Exception, what: str, url: str, endpoint: str) -> QueueUnavailable | Unsupported:
    """Our error for a foreign one: what failed, why, and what to do."""
    if is_missing(error):
        return Unsupported(
            f"{what}: there is no queue {shown(url)} at {shown(endpoint)}: correct the URL (DREAMDROP_QUEUE), or make "
            "the queue with `dreamdrop setup queue`"
        )
    if is_denied(error):
        return Unsupported(f"{what}: access denied: give this identity {_ACTIONS} on {shown(url)}")
    return QueueUnavailable(f"{what}: {_reason(error, shown(endpoint))}")


def shown(url: str) -> str:
    """An address without the password or the signature that it may hold."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return (
        f"{parts.scheme}://{parts.hostname}{port}{parts.path}" if parts.hostname else "the queue's endpoint"
    )


def _reason(error: Exception, endpoint: str) -> str:
    word, status = word_of(error), status_of(error)
    if isinstance(error, CREDENTIALS):
        return f"no usable AWS credentials: {HOW_TO_SIGN_IN}"
    if isinstance(error, boto.ProfileNotFound):
        return "AWS_PROFILE names a profile that is not in ~/.aws/config: correct it or unset it"
    if word in _EXPIRED:
        return "the session has expired or its token is refused: sign in again"
    if word in _SKEWED:
        return "this machine's clock is wrong: set it (NTP)"
    if word in _KEYS:
        return "the keys are refused: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the queue's region"
    if word in _THROTTLED:
        return "the queue asks for fewer requests; it is tried again later"
    if isinstance(error, boto.ClientError):
        return f"{endpoint} answered {status} {word}" + (
            "; it is tried again later" if is_transient(error) else ""
        )
    if isinstance(error, (boto.ConnectTimeoutError, boto.EndpointConnectionError)):
        return f"{endpoint} cannot be reached: check AWS_ENDPOINT_URL_SQS and the network"
    if isinstance(error, boto.SSLError):
        return f"{endpoint} shows a certificate that is not trusted: set AWS_CA_BUNDLE to its authority"
    if isinstance(error, boto.BotoCoreError) and not isinstance(error, boto.HTTPClientError):
        return f"the AWS library refused ({type(error).__name__}): check the AWS variables and ~/.aws/config"
    return f"the connection to {endpoint} broke or timed out; it is tried again later"
