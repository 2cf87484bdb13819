"""The web pages: the form, the queue, the gallery, single pictures and batches.

A browser's GET comes in through `routes`; `gallery` reads the store, `items` says what a page shows of a result, and
the templates write HTML that the scripts in `static` keep up to date through the endpoints of `api`. It imports
the shared modules of `producer.web`, not the other three packages.
"""
