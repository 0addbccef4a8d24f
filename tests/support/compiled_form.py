"""`pytest -p tests.support.compiled_form ...`: these tests with the compiled form of the request path."""

from __future__ import annotations

import pytest

from activator_replacement import compiled

if compiled.use() != compiled.COMPILED:
    raise pytest.UsageError("there is no compiled form of these sources: python -m tools.compiled builds it")
