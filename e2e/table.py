"""`python -m e2e.table`: the whole table, several stacks at once, and what came of it as Markdown.

Each file of behaviours runs against each implementation in a pytest of its own, with a stack of its own: most of
their time goes by in waiting for windows and Leases to pass, so three of them fit on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from e2e.stack.implementations import IMPLEMENTATIONS, USUAL
from e2e.stack.place import CLONE

NOTHING_COLLECTED = 5


class Case(NamedTuple):
    file: str
    behaviour: str
    implementation: str
    outcome: str  # passed, failed or skipped
    seconds: float


def files(words: Iterable[str]) -> list[Path]:
    """Whose names contain one of the words, the largest first: it may take longest."""
    words = tuple(words)
    found = [*CLONE.glob("e2e/behaviours/test_*.py"), CLONE / "e2e" / "test_manifests.py"]
    named = [path for path in found if not words or any(word in path.stem for word in words)]
    return sorted(named, key=lambda path: -path.stat().st_size)


def run(file: Path, implementation: str, folder: Path) -> list[Case]:
    """Says how it went, with all that pytest said if it went wrong."""
    report = folder / f"{file.stem}-{implementation}.xml"
    command = [sys.executable, "-m", "pytest", str(file), "--impl", implementation, f"--junitxml={report}"]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider"], cwd=CLONE, capture_output=True, text=True, check=False
    )
    found = cases(report, file.stem.removeprefix("test_"), implementation) if report.exists() else []
    if done.returncode not in (0, NOTHING_COLLECTED):
        print(done.stdout, done.stderr, file=sys.stderr)
        if all(case.outcome != "failed" for case in found):
            found.append(
                Case(file.stem.removeprefix("test_"), "(the run itself)", implementation, "failed", 0.0)
            )
    counts = ", ".join(
        f"{sum(case.outcome == word for case in found)} {word}" for word in ("passed", "failed", "skipped")
    )
    print(
        f"{file.stem} {implementation}: {counts} in {time.monotonic() - started:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return found


def cases(report: Path, file: str, implementation: str) -> list[Case]:
    found = []
    for entry in ElementTree.parse(report).iter("testcase"):
        words = {child.tag for child in entry}
        outcome = "failed" if words & {"failure", "error"} else "skipped" if "skipped" in words else "passed"
        behaviour = entry.attrib["name"].removeprefix("test_").replace(f"[{implementation}]", "")
        behaviour = behaviour.replace(f"[{implementation}-", "[").replace("_", " ")
        found.append(Case(file, behaviour, implementation, outcome, float(entry.attrib["time"])))
    return found


def markdown(found: Iterable[Case], implementations: Iterable[str]) -> str:
    implementations = list(implementations)
    rows: dict[tuple[str, str], dict[str, Case]] = {}
    for case in found:
        rows.setdefault((case.file, case.behaviour), {})[case.implementation] = case
    lines = [f"| | behaviour | {' | '.join(implementations)} |", "|---" * (2 + len(implementations)) + "|"]
    for (file, behaviour), row in sorted(rows.items()):
        cells = [
            f"{row[name].outcome}, {row[name].seconds:.0f} s" if name in row else ""
            for name in implementations
        ]
        lines.append(f"| {file} | {behaviour} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.table", description=__doc__)
    parser.add_argument("words", nargs="*", help="only files whose names contain one of these")
    parser.add_argument("--impl", action="append", choices=list(IMPLEMENTATIONS), help="(stock and ours)")
    parser.add_argument("--stacks", type=int, default=3, help="at once (3)")
    args = parser.parse_args()
    implementations = args.impl or USUAL
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.stacks) as pool:
        runs = [
            pool.submit(run, file, implementation, Path(folder))
            for file in files(args.words)
            for implementation in implementations
        ]
        found = [case for each in runs for case in each.result()]
    print(markdown(found, implementations))
    return int(not found or any(case.outcome == "failed" for case in found))


if __name__ == "__main__":
    sys.exit(main())
