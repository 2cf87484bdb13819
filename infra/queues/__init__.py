"""SQS queues that tell workers of requests, and the setup that makes a bucket announce its new files to one.

Callers come in by `sqs.Queue` for messages, `leases.MessageLeases` for the messages that a worker holds, and
`setup.Account` for the setup.
It may import `infra.stores` and `infra.aws`; what a message says is decoded in `schemas.events`, not here.
"""
