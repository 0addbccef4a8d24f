"""What a failed start means to a person: one line, the argument or file to look at, and what to do.

Whatever vLLM raises while it reads arguments is permanent; while it loads, only what the model's own files
cause is. Trouble of the machine (memory, ports) may pass, so the instance may be tried elsewhere.
"""

from __future__ import annotations

import errno
import re
import traceback
from typing import Literal

from runtimes.vllm_pd.status import StartRefused

_PASSING = ("memory", "no space left", "address already in use", "resource temporarily unavailable")
_WEIGHTS = ("load_weights", "load_model")
_OPTION = re.compile(r"`?(--[a-z][a-z0-9-]+)|\b([a-z]+(?:_[a-z]+)+)\b")


def explain(error: BaseException, stage: Literal["arguments", "loading"], known: set[str]) -> StartRefused:
    """`known`: the names of the arguments that this server takes, as attributes (max_model_len)."""
    if isinstance(error, StartRefused):
        return error
    text = _message(error)
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return StartRefused(text, "--port", "choose another port, or 0", permanent=False)
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _PASSING):
        remedy = "free memory on the node, or lower --kv-cache-memory-bytes or --max-model-len"
        return StartRefused(text, _field(text, known) or "memory", remedy, permanent=False)
    if stage == "arguments":
        return StartRefused(text, _field(text, known) or "args", "correct or remove this argument")
    field = _field(text, known) or "--model"
    permanent = isinstance(error, ValueError | KeyError | TypeError | AssertionError | OSError | ImportError)
    permanent = permanent or type(error).__name__ == "SafetensorError" or _while_loading_weights(error)
    return StartRefused(text, field, "check the model's files and the arguments", permanent=permanent)


def _while_loading_weights(error: BaseException) -> bool:
    """A tensor of the file doesn't fit the model that config.json describes."""
    return any(frame.name in _WEIGHTS for frame in traceback.extract_tb(error.__traceback__))


def _message(error: BaseException) -> str:
    errors = getattr(error, "errors", None)
    # pydantic: only what was wrong, not how to read about it
    parts = [str(item.get("msg", item)) for item in errors()] if callable(errors) else [str(error)]
    text = " ".join("; ".join(parts).split())
    return (text or type(error).__name__)[:600]


def _field(text: str, known: set[str]) -> str:
    for option, word in _OPTION.findall(text):
        name = str(option).removeprefix("--").replace("-", "_") or str(word)
        if name in known:
            return "--" + name.replace("_", "-")
    return ""
