"""`python -m tools.layers`: hold the imports to .importlinter. Silent unless an import breaks a contract."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout

from importlinter.cli import lint_imports


def main() -> int:
    report = io.StringIO()
    with redirect_stdout(report):
        status = lint_imports(config_filename=".importlinter", no_cache=True, no_logo=True)
    if status:
        print(report.getvalue())
    return status


if __name__ == "__main__":
    sys.exit(main())
