"""What an operator watches: metrics for Prometheus, and a small HTTP server for them with two probes.

It needs prometheus-client, which the extras `consumer`, `training` and `web` bring. docs/metrics.md lists every metric.
"""
