"""OpenAI's image, file and batch endpoints under `/v1`, for programs that were written for them.

A body comes in through `images`, `files` or `batches`; `fields` and `batch_input` translate it into manifests,
`results`, `batch_output` and `errors` translate back. It imports the shared modules of `producer.web`, not the
other three packages.
"""
