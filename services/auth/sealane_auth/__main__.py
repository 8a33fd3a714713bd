"""``python -m sealane_auth``."""

import sys

from sealane.rpc.entry import run_async
from sealane_auth import app
from sealane_auth.config import PREFIX, Config

if __name__ == "__main__":
    sys.exit(run_async(Config, PREFIX, app.run))
