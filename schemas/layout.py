"""The layout of a bucket: ids and keys.

    requests/cats/a.json            dropped by a client; .json is one request, .jsonl many
    claims/cats/a/000001            the claim of the first attempt
    claims/cats/a/000001.released   the release marker: given back, and why
    workers/<session>               a worker's heartbeat
    status/cats/a.json              how far the request is; advisory
    results/cats/a/0.png            an image, written once
    results/cats/a/result.json      the result manifest: the commit
    results/cats/a/request-<h>.json the request, where it is too long for the result manifest
    uploads/openai/...              a facade's files and batches of OpenAI clients

    trainings/my-dog.json           a training, dropped by a client
    training-claims/..., training-results/..., training-status/..., trainers/<session>
                                    the same protocol for trainings; see `infra/claims/trainings.py`

An *id* names a request: segments of `[A-Za-z0-9._~-]`, joined by `/`, each at most 100 bytes and not
starting with a dot. A segment below another one never looks like one of our own files (`000001`, `0.png`,
`result.json`): in a directory `claims/a/000001` cannot be both a claim of `a` and a folder.
"""

from __future__ import annotations

import hashlib
import re

REQUESTS = "requests/"
EXPRESS = "requests/express/"  # the interactive lane, looked at first
CLAIMS = "claims/"
WORKERS = "workers/"
STATUS = "status/"
RESULTS = "results/"
MODELS = "models/"
UPLOADS = "uploads/"  # what a facade keeps for its callers; not part of the protocol

#: Trainings have prefixes of their own, because a worker's sweep takes all that lies under `claims/`.
TRAININGS = "trainings/"
TRAINING_CLAIMS = "training-claims/"
TRAINING_RESULTS = "training-results/"
FROZEN = "frozen.json"  # in a training's folder: which base and pictures its first attempt found
TRAINING_STATUS = "training-status/"
TRAINERS = "trainers/"
TRAINING_UPLOADS = "uploads/trainings/"  # pictures by their content, which `train dreambooth --detach` stores
#: Folders below a training's results that only its continuation needs.
CHECKPOINTS, CLASS_PICTURES = "checkpoints/", "class/"
CHECKPOINT_COMMIT = "checkpoint.json"  # the last file of a checkpoint; it holds the hashes of the others

MAX_ID_BYTES = 400
MAX_SEGMENT_BYTES = 100
_SAFE_ID = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*")
#: What a client may choose as `id` or `custom_id`: one segment.
CHOSEN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._~-]+")
_CLAIM = re.compile(r"claims/(?P<id>.+)/(?P<epoch>\d{6})(?P<released>\.released)?")

SINGLE, BATCH = ".json", ".jsonl"
COMMIT = "result.json"
COMMIT_TYPE = "application/json"
#: Names of our own files in an id's folders; a segment of an id below another must not match.
_OWN_FILE = re.compile(r"\d{6}(\.released)?|.+\.(json|jsonl|html|png|jpe?g|webp)", re.IGNORECASE)


def fingerprint(body: bytes) -> str:
    """The SHA-256 of a request's bytes, in hex: equal for equal requests."""
    return hashlib.sha256(body).hexdigest()


def oversize_fingerprint(key: str, size: int, etag: str) -> str:
    """The fingerprint of an object that is too large to be read."""
    return fingerprint(f"{key} {size} {etag}".encode())


def is_request(key: str) -> bool:
    """Whether a key under `requests/` is one that a worker takes: `.json` or `.jsonl`, in any case."""
    name = key.rsplit("/", 1)[-1].lower()
    return key.startswith(REQUESTS) and not name.startswith(".") and name.endswith((SINGLE, BATCH))


def store_of_request(key: str) -> str | None:
    """The prefix of the store whose request a bucket's key may name, "" or with its slash; None when it names none.

    Several stores may lie in one bucket, each below a prefix of its own.
    """
    place = f"/{key}".find(f"/{REQUESTS}")
    return key[:place] if place >= 0 and is_request(key[place:]) else None


def is_batch(key: str) -> bool:
    """Whether the object of a request key is a batch: one request per line."""
    return key.lower().endswith(BATCH)


def request_id(key: str) -> str:
    """The id of a dropped file: its path under its lane without the extension.

    The lane is not part of the id: it says how soon a request is served. Unsafe characters are replaced;
    then a short hash of the key is added, so that two keys never get the same id.
    """
    path = key.removeprefix(EXPRESS if key.startswith(EXPRESS) else REQUESTS)
    extension = BATCH if is_batch(key) else SINGLE
    if path.lower().endswith(extension):
        path = path[: -len(extension)]
    return safe_id(path, key)


def safe_id(path: str, key: str | None = None) -> str:
    """Turn any text into an id; unchanged when it is one already."""
    if is_id(path):
        return path
    segments = [_safe_segment(s) for s in path.split("/")]
    if len(segments) > 1:
        segments = [f"_{s.replace('.', '_')}" if _OWN_FILE.fullmatch(s) else s for s in segments]
    digest = hashlib.sha256((key or path).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = "/".join(s for s in segments if s)[: MAX_ID_BYTES - 20].strip("/")
    last = short.rsplit("/", 1)[-1][: MAX_SEGMENT_BYTES - 9]
    folder = short.rsplit("/", 1)[0] + "/" if "/" in short else ""
    return f"{folder}{last}-{digest}" if last else f"{folder}request-{digest}"


def _safe_segment(segment: str) -> str:
    return _UNSAFE.sub("_", segment).lstrip(".")[:MAX_SEGMENT_BYTES]


def is_id(text: str) -> bool:
    """Whether a text is a valid id."""
    segments = text.split("/")
    if any(_OWN_FILE.fullmatch(s) for s in segments[1:]) or any(s.endswith(SINGLE) for s in segments[:-1]):
        return False
    return len(text) <= MAX_ID_BYTES and all(
        len(s) <= MAX_SEGMENT_BYTES and _SAFE_ID.fullmatch(s) for s in segments
    )


def other_body_id(request: str, fingerprint: str) -> str:
    """The id for a dropped file's result when its own id already answers another body."""
    folder, _, last = request.rpartition("/")
    return f"{folder}{'/' if folder else ''}{last[: MAX_SEGMENT_BYTES - 9]}~{fingerprint[:8]}"


def row_id(batch: str, custom_id: str | None, line: int) -> str:
    """A batch row's id: below its batch, with its own name or its line number (from 1)."""
    name = f"line-{line:06d}" if custom_id is None else custom_id
    # A slash becomes a letter that no id has, so that a hash keeps the names `a/b` and `a_b` apart.
    return safe_id(f"{batch}/{safe_id(name.replace('/', ' '), name)}")


def request_key(request: str, extension: str = SINGLE) -> str:
    return f"{REQUESTS}{request}{extension}"


def claim_key(request: str, epoch: int) -> str:
    return f"{CLAIMS}{request}/{epoch:06d}"


def released_key(request: str, epoch: int) -> str:
    return f"{claim_key(request, epoch)}.released"


def claims_prefix(request: str) -> str:
    return f"{CLAIMS}{request}/"


def parse_claim(key: str) -> tuple[str, int, bool] | None:
    """(id, epoch, whether it is the release marker) of a key under `claims/`, or None."""
    match = _CLAIM.fullmatch(key)
    return (match["id"], int(match["epoch"]), match["released"] is not None) if match else None


def worker_key(session: str) -> str:
    return f"{WORKERS}{session}"


def status_key(request: str) -> str:
    return f"{STATUS}{request}.json"


def parse_status(key: str) -> str:
    """The id of a key under `status/`."""
    return key.removeprefix(STATUS).removesuffix(".json")


def result_folder(request: str) -> str:
    return f"{RESULTS}{request}/"


def result_key(request: str) -> str:
    return f"{RESULTS}{request}/{COMMIT}"


def kept_request_key(request: str, fingerprint: str, *, batch: bool = False) -> str:
    """The key of a request that is too long for its result; two bodies never have the same."""
    return f"{RESULTS}{request}/request-{fingerprint[:16]}{BATCH if batch else SINGLE}"


def parse_result(key: str) -> str | None:
    """The id of a key under `results/` that is a result manifest, or None."""
    id = key.removeprefix(RESULTS).removesuffix(f"/{COMMIT}")
    return id if id and key == result_key(id) else None


def parse_result_file(key: str) -> str | None:
    """The id in whose folder under `results/` a key is one of our files, or None for a stranger's file."""
    id, _, name = key.removeprefix(RESULTS).rpartition("/")
    return id if key.startswith(RESULTS) and _OWN_FILE.fullmatch(name) and is_id(id) else None


def image_key(request: str, index: int, extension: str) -> str:
    """The key of image `index` (from 0) of a request; extension such as "png"."""
    return f"{RESULTS}{request}/{index}.{extension}"
