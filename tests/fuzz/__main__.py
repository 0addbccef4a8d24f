"""Fuzzes the parsers by coverage: `python -m tests.fuzz [--seconds N] [TARGET...]`, by `make fuzz`.

One child process a target, one after the other, since a finding ends its process. What was interesting is kept in the
cache folder and is where the next run begins. A finding's input is written there, too, and printed with its property.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS
from tools.setup.layout import Layout

_STATS = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")
_COVERAGE = re.compile(rb"cov: (\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    args = parser.parse_args()
    unknown = sorted(set(args.targets) - TARGETS.keys())
    if unknown:
        parser.error(f"no target {', '.join(unknown)}: there are {', '.join(TARGETS)}")
    failed = [name for name in args.targets or TARGETS if not fuzz(name, args.seconds)]
    if failed:
        print(f"findings in {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def folder(name: str) -> Path:
    return Layout.of_user().cache / "fuzz" / name


def fuzz(name: str, seconds: int) -> bool:
    """One target in a process of its own; False when it found something."""
    command = [sys.executable, "-m", "tests.fuzz.drive", name, str(seconds), str(folder(name))]
    done = subprocess.run(command, capture_output=True, check=False)
    executed = _STATS.search(done.stderr)
    coverage = _COVERAGE.findall(done.stderr)
    print(
        f"{name:18} {int(executed[1]) if executed else 0:>12,} inputs in {seconds} s, "
        f"coverage {int(coverage[-1]) if coverage else 0}, "
        f"{'no finding' if done.returncode == 0 else 'A FINDING'}",
        flush=True,
    )
    if done.returncode:
        sys.stderr.buffer.write(done.stderr[-6000:])
        print(f"inputs: {folder(name)}", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
