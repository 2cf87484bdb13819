"""Checks of a running installation, for the people who operate it.

The commands call `doctor.examine` (store, workers, queues), `canary.Canary.run` (one request, hop by hop) and
`dead_letters.look` (messages that nobody could use). They may import `infra` and the client's modules, but not
`producer.commands` or `producer.web`.
"""
