"""From the world to a claim: finds requests, reads them, and claims as many as this worker has room for.

They come in by two doors: `listing` lists the inbox in the store, `queue` receives messages; `claiming` serves both.
May import infra, schemas, and `consumer.jobs`, which gets every claim that was made.
"""
