"""Errors of a bucket, as messages that say what to do.

The AWS library's messages are not repeated: they may hold URLs with passwords in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore import exceptions as boto

from infra.aws import code_of, reason_of, shown, status_of
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

_DENIED = (
    "access denied: give this identity s3:GetObject, s3:PutObject, s3:DeleteObject and "
    "s3:ListBucket (without the last, a missing object is denied, too)"
)
_DENIED_OBJECT = (
    "; if it has them, then this object alone is denied: another account owns it (upload with "
    "bucket-owner-full-control), or a policy or an access list names it"
)
_KEY_DENIED = (
    "the object is encrypted with a KMS key that this identity may not use: give it kms:Decrypt and "
    "kms:GenerateDataKey in its own policy and in the key's"
)
_KEY_BROKEN = (
    "the KMS key that encrypts it is disabled, deleted or unusable: enable it, or upload the object again"
)
_CUSTOMER_KEY = (
    "the object is encrypted with a key that only its sender has (SSE-C): upload it again without one "
    "(SSE-S3 and SSE-KMS are fine)"
)
_FULL = "the store is full: free some space or raise the quota"

_BY_CODE: Mapping[str, str] = {
    "AllAccessDisabled": "the account's access is disabled: check its billing and status",
    "AccountProblem": "the account has a problem: check its billing and status",
    "InvalidAccessKeyId": "the access key is unknown there: check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL_S3",
    "SignatureDoesNotMatch": "the signature is refused: check AWS_SECRET_ACCESS_KEY and the region",
    "ExpiredToken": "the session has expired: sign in again",
    "InvalidToken": "the session token is refused: check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it (NTP)",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region: set AWS_REGION",
    "SlowDown": "the store asks for fewer requests; the call will be tried again later",
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "InvalidObjectState": "the object is archived and cannot be read: restore it, or copy it to a "
    "storage class that is read at once, and let no lifecycle rule archive requests/",
    "SSECustomerKeyMissing": _CUSTOMER_KEY,
}


def translated(
    error: Exception, what: str, bucket: str, endpoint: str, *, of_object: bool = False
) -> StoreUnavailable:
    """Our error for one of the AWS library's: what failed, why, and what to do.

    Args:
        of_object: the call read one object, so that what is wrong may be wrong with that one only.
    """
    if isinstance(error, boto.ClientError):
        reason = _answered(error, bucket, shown(endpoint), of_object)
    else:
        reason = reason_of(error, shown(endpoint), "AWS_ENDPOINT_URL_S3")
    return StoreUnavailable(f"{what}: {reason}")


def _answered(error: boto.ClientError, bucket: str, endpoint: str, of_object: bool) -> str:
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket!r} at {endpoint}: create it, or correct the name"
    advice = _advice(code, status, str(error.response.get("Error", {}).get("Message", "")), of_object)
    if advice:
        return advice if code in advice else f"{advice} ({status} {code})"
    if 400 <= status < 500 and status not in (408, 409, 425, 429):
        return (
            f"{endpoint} refuses it with {status} {code}, and will refuse it again until the cause is removed"
        )
    return f"{endpoint} answered {status} {code}; the call will be tried again later"


def _advice(code: str, status: int, message: str, of_object: bool) -> str:
    """What to do about an answer; "" when that is not known. The message is only searched, never repeated."""
    if "Content-MD5" in message:
        return "the bucket's object lock asks for a checksum: set AWS_REQUEST_CHECKSUM_CALCULATION=when_supported"
    if code.startswith("KMS."):
        return _KEY_DENIED if "AccessDenied" in code else _KEY_BROKEN
    if "kms:" in message and status == 403:
        return _KEY_DENIED
    if of_object and status == 400 and ("Server Side Encryption" in message or "SSE-C" in message):
        return _CUSTOMER_KEY
    if of_object and code == "400":  # the answer to HEAD has no body
        return f"it cannot be read this way; perhaps {_CUSTOMER_KEY}"
    if code in ("AccessDenied", "403", "Forbidden", ""):
        return _DENIED + (_DENIED_OBJECT if of_object else "") if status == 403 else ""
    return _BY_CODE.get(code, "")


def _needs_checksum(error: Exception) -> bool:
    """Whether a bucket with object lock asks for a checksum that was not sent."""
    return isinstance(error, boto.ClientError) and "Content-MD5" in str(
        error.response.get("Error", {}).get("Message", "")
    )


def is_final(error: Exception) -> bool:
    """Whether a write was not done, and another try would fail in the same way."""
    if (
        _needs_checksum(error)
        or status_of(error) == 403
        or code_of(error) in ("NoSuchBucket", "ExpiredToken", "InvalidToken")
    ):
        return True
    lost = (boto.HTTPClientError, boto.ConnectionError)  # the answer, perhaps
    return isinstance(error, boto.BotoCoreError) and not isinstance(error, lost)


def unsupported(error: Exception, url: str) -> str:
    """Why a store that gave this answer to a create cannot be used; "" when it can."""
    status, code = status_of(error), code_of(error)
    if _needs_checksum(error):
        return ""
    if status == 501 or (status == 400 and code in ("NotImplemented", "InvalidArgument", "InvalidRequest")):
        return (
            f"{url} refused a conditional write (If-None-Match: *) with {code or status}: "
            "without them two workers could take one request. Use a store with conditional writes "
            "(AWS S3, Ceph, MinIO, R2, ...), or a directory"
        )
    return ""
