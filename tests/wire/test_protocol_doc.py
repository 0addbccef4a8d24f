"""docs/protocol.md says what the code does: the header's fields, the error codes, every method and its reply."""

from __future__ import annotations

import re
from pathlib import Path

from kserve_ext.wire.frames import HEADER_BYTES, ErrorCode
from kserve_ext.wire.messages import METHODS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_method_is_in_the_table() -> None:
    found = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \|", section("Methods"), re.MULTILINE)
    expected = [(str(n), request.__name__, reply.__name__) for n, (request, reply) in METHODS.items()]
    assert found == expected


def test_the_header_adds_up() -> None:
    fields = re.findall(r"^\| (\d+) \| (\d+) \| [a-z ]+ \|", section("Frames"), re.MULTILINE)
    at = 0
    for offset, size in fields:
        assert int(offset) == at
        at += int(size)
    assert at == HEADER_BYTES


def test_error_codes() -> None:
    found = re.findall(r"^\| (\d) \| (\w+) \| [^|]+ \|$", section("Frames"), re.MULTILINE)
    assert found == [(str(int(code)), code.name.lower()) for code in ErrorCode]
