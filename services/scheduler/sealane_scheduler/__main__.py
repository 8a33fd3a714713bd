"""``python -m sealane_scheduler``."""

import sys

from sealane.rpc.entry import run_async
from sealane_scheduler import app
from sealane_scheduler.config import PREFIX, Config

if __name__ == "__main__":
    sys.exit(run_async(Config, PREFIX, app.run))
