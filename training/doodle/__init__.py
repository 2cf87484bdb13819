"""The recipe of the bundled model `doodle`, and the judge that grades it.

Start with `train.py`. It may import schemas and infra.
"""

import os

from infra.child_process import thread_settings

os.environ.update(thread_settings(os.environ))  # torch reads them once, when it is imported
