"""What the doctor says about this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.verbs import doctor
from kserve_ext.rpc.ports import free_port

PROXY = "http://proxy.example:3128"
NAMES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.mark.parametrize(
    ("environ", "remedy"),
    [
        ({}, ""),
        ({"http_proxy": PROXY}, "no_proxy=127.0.0.1,localhost NO_PROXY=127.0.0.1,localhost"),
        ({"HTTP_PROXY": PROXY}, "no_proxy=127.0.0.1,localhost"),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "corp.example"}, "no_proxy=corp.example,127.0.0.1,localhost"),
        ({"http_proxy": PROXY, "no_proxy": "localhost"}, "no_proxy=localhost,127.0.0.1"),
        ({"http_proxy": PROXY, "NO_PROXY": "localhost,127.0.0.1"}, ""),
        ({"http_proxy": PROXY, "no_proxy": "*"}, ""),
        ({"https_proxy": PROXY}, ""),
    ],
)
def test_a_proxy_that_would_get_the_clusters_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], remedy: str
) -> None:
    for name in (*NAMES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = [f for f in doctor.machine(Folder(tmp_path)) if "a proxy is set" in f.what]
    assert [f.level for f in found] == (["warning"] if remedy else [])
    assert all(remedy in f.do and "curl --noproxy" in f.do for f in found)


def test_a_state_store_that_is_away_is_a_failure_with_its_remedy(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.key.write_bytes(b"k" * 32)
    (found,) = doctor._store(folder, f"redis://:s3cret@127.0.0.1:{free_port()}/0")
    assert found.level == "failed"
    assert "state store redis://127.0.0.1:" in found.what
    assert "s3cret" not in found.what
    assert "is the server up" in found.do
    assert not list(doctor._store(folder, ""))
