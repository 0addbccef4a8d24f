"""`python -m runtimes.two_leg --prefill URL ... --decode URL ...`: one router."""

import sys

from runtimes.two_leg.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
