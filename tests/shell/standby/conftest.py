from __future__ import annotations

import pytest

from autoscaler_shim.knative import deciders


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciders, "TICK_S", 0.1)
