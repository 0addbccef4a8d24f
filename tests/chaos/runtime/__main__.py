from __future__ import annotations

import sys

from tests.chaos.runtime.server import main

sys.exit(main(sys.argv[1:]))
