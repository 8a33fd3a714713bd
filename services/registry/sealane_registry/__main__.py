"""``python -m sealane_registry``."""

import sys

from sealane.rpc.entry import run_async
from sealane_registry import app
from sealane_registry.config import PREFIX, Config

if __name__ == "__main__":
    sys.exit(run_async(Config, PREFIX, app.run))
