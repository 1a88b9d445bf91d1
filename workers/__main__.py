"""`python -P -m workers ARGUMENTS`: the command ``celery -A workers ARGUMENTS``, with this package in any folder.

``celery`` itself looks in the current folder first, where a user may well have a ``workers`` of his own.
"""

import os
import sys

from celery.__main__ import main

import workers

if __name__ == "__main__":
    # Programs that it starts leave the current folder alone too: vLLM asks one about each model.
    os.environ["PYTHONSAFEPATH"] = "1"
    # By its own words Celery starts itself anew on SIGHUP: this file, with all of them.
    application = [] if sys.argv[1:2] == ["-A"] else ["-A", "workers"]
    sys.argv = [__file__, *application, *sys.argv[1:]]
    workers.celery  # noqa: B018 - imported here and now: Celery would have the current folder on the path
    main()
