"""Object stores with one interface: an S3 bucket, a directory, or memory.

Callers come in by `open.open_store`, which returns an implementation of `store.Store`; `probe` tests whether a store
keeps the guarantees, and `changes` says when to list it again.
It may import `infra.aws`, and knows nothing of claims, requests or queues except the folder `requests/`.
"""
