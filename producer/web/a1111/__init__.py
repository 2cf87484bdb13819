"""The endpoints of AUTOMATIC1111's web UI under `/sdapi/v1`, for programs that were written for it.

A body comes in through `routes`, `fields` translates it into a manifest, and `lists` answers what there is to
choose from. It imports the shared modules of `producer.web`, not the other three packages.
"""
