"""One target under atheris, in a process of its own: `python -m tests.fuzz.drive TARGET SECONDS FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris


def main(name: str, seconds: str, corpus: Path) -> None:
    with atheris.instrument_imports(include=["kserve_ext.api", "kserve_ext.wire"]):
        from tests.fuzz.targets import SEEDS, TARGETS

    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", "-print_final_stats=1", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={corpus}/", str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
