"""Announcements of ended requests: events to SQS queues, SNS topics and webhooks, at least once each.

The claim protocol asks `announcer.Announcer.may_forget` before it removes the last trace of a request; `targets`
makes the targets that a worker's settings name, and each has an `outbox` that retries.
It may import schemas and infra, and nothing else of consumer.
"""
