"""Everything outside the process: object stores, queues, AWS, the environment and the log.

`stores` and `queues` reach the outside world, `claims` is the protocol by which workers share a store, and the modules
of this folder are used by all of them and by the packages above.
It may import `schemas`; inside it, `claims` and `queues` import `stores`, and those the modules of this folder.
"""
