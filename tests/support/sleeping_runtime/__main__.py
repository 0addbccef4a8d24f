from __future__ import annotations

import sys

from tests.support.sleeping_runtime.server import main

sys.exit(main(sys.argv[1:]))
