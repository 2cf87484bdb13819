"""A store in a directory that many processes share, without a server.

Callers come in by `store.DirectoryStore`; `safe_paths` opens files without ever leaving the directory, and `metadata`
keeps the objects' metadata in sidecar files.
It may import `infra.stores.store` and `infra.stores.keys`, and uses the standard library for everything else.
"""
