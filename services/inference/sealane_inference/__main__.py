"""``python -m sealane_inference``: run the gateway until SIGTERM."""

import sys

from sealane.rpc.entry import run_async
from sealane_inference import app
from sealane_inference.config import PREFIX, Config

if __name__ == "__main__":
    sys.exit(run_async(Config, PREFIX, app.serve))
