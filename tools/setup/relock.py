"""`python -m tools.setup.relock`: after versions were edited in requirements/*.lock, fetch their hashes.

Asks the configured index through pip, without resolving: what a package needs is the editor's decision, since
much of what the engines claim to need is left out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tools.setup import commands, environments, pins
from tools.setup.layout import Layout


def main() -> None:
    layout = Layout.of_user()
    if not (layout.installer / "bin" / "python").exists():
        environments.make_installer(layout)
    locks = sorted((layout.clone / "requirements").glob("*.lock"))
    hashes: dict[tuple[str, str], str] = {}
    for lock in locks:
        hashes |= ask(layout, lock)
    for lock in locks:
        lock.write_text(pins.rewrite(lock, hashes), encoding="utf-8")
    print(
        f"{len(hashes)} hashes in {', '.join(lock.name for lock in locks)}; `make test` installs and tries them"
    )


def ask(layout: Layout, lock: Path) -> dict[tuple[str, str], str]:
    """Hash by (normal name, version) of every line, as the index has it."""
    with tempfile.TemporaryDirectory() as scratch:
        plain, report = Path(scratch) / "plain.txt", Path(scratch) / "report.json"
        lines = [
            line.split(" --hash")[0] for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line
        ]
        plain.write_text("\n".join(lines), encoding="utf-8")
        options = (
            "--no-deps",
            "--ignore-installed",
            "--dry-run",
            "--only-binary",
            ":all:",
            "--report",
            report,
            "-r",
            plain,
        )
        commands.pip(layout, "relock", "install", *options)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        (pins.normal(item["metadata"]["name"]), item["metadata"]["version"]): item["download_info"][
            "archive_info"
        ]["hashes"]["sha256"]
        for item in found
    }


if __name__ == "__main__":
    main()
