"""The bucket protocol: which worker has a request, who takes it over, and how it ends exactly once.

Workers come in by `claims.Claims` and clients read claims by `claim.Claim`; the other modules are the protocol's parts.
It may import `infra.stores` for the interface of a store, and no module of it reads a clock or draws a random number by
itself, so that `tests/chaos` can simulate it.
"""
