"""A vLLM configuration as flat text, for kserve_ext/core/standby/shape.py, and the environment that engines read.

Told before an engine is built of it, which writes into its configuration. Two configurations of the same arguments
and config.json have the same facts; a test holds vLLM to that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

#: vLLM reads some of these at every call, others once and never again: none may change under an engine.
_ENGINE_ENV = ("VLLM_", "OMP_", "MKL_", "KMP_", "CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "ONEDNN_")
#: What one process reads of them that is no engine's, or that each has for itself.
_NOT_ENGINE_ENV = ("VLLM_LOGGING_", "VLLM_API_KEY", "VLLM_NO_USAGE_STATS", "VLLM_HOST_IP", "VLLM_PORT")


def facts(config: Any, environ: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    _walk(config, "", found)
    for name, value in environ.items():
        if name.startswith(_ENGINE_ENV) and not name.startswith(_NOT_ENGINE_ENV):
            found[f"env.{name}"] = value
    return found


def _walk(value: Any, name: str, found: dict[str, str]) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _walk(getattr(value, field.name, None), f"{name}.{field.name}".lstrip("."), found)
    elif hasattr(value, "to_dict"):  # config.json, as transformers understands it
        for key, inner in value.to_dict().items():
            found[f"{name}.{key}"] = repr(inner)
    else:
        found[name] = repr(value)
