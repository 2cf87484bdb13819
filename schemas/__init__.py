"""The wire contract: what clients send, what workers answer, and how everything in a bucket is named.

Requests come in by `manifest.parse_manifest`, batches by `batch.split_rows`, queue messages by `events.decode`; `plan`,
`result`, `completion` and `layout` define what is written.
It may import only pydantic and the standard library: no I/O, no torch, no AWS library.
"""
