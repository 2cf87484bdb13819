"""The worker: takes requests from a store, renders them in batches, and writes images and results back.

A request crosses its rooms in order: intake, jobs, renderer or engine, jobs; `announce` tells others of its end.
May import infra and schemas; only `consumer.engine`, which runs in child processes, may import torch.
"""
