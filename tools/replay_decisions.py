"""Makes decisions again of what was kept with them: `sealane explain NAME -o json | python tools/replay_decisions.py`.

Says for each whether the same node and variant come out; exits 1 where not.
"""

from __future__ import annotations

import base64
import json
import sys

from sealane_scheduler.replay import replay


def main() -> int:
    """Replay what standard input holds."""
    differs = False
    for told in json.load(sys.stdin):
        if "record" not in told:
            print(f"epoch {told.get('epoch', 0)}: nothing was kept, or it is not yours to read")
            continue
        again = replay(base64.b64decode(told["record"]))
        then = told.get("node", "").removeprefix("nodes/"), told.get("variant", "")
        same = then == (again.node, again.variant) and told["snapshot"]["digest"] == again.seen.digest
        differs = differs or not same
        where = " ".join(filter(None, then)) or "nowhere"
        print(f"epoch {told.get('epoch', 0)}: {where}: {'the same again' if same else 'DIFFERS'}")
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
