from __future__ import annotations

import sys

from bench.peers.tiny_runtime.server import main

sys.exit(main(sys.argv[1:]))
