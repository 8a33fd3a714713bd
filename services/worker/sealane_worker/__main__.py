"""``python -m sealane_worker``: run a worker until SIGTERM."""

import sys

from sealane.rpc.entry import run_sync
from sealane_worker import app
from sealane_worker.config import PREFIX, Config

if __name__ == "__main__":
    sys.exit(run_sync(Config, PREFIX, app.run))
