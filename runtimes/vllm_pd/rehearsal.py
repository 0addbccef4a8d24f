"""A shaped engine serves once before it is offered: what runs for the first time takes a second and more.

A model that has nothing but the shape's config.json and a made-up tokenizer is served on a port of this host, asked
as clients ask, and ended. Its weights are the zeros that are there. Nothing of it is left but what Python and its
libraries have warmed up.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from runtimes.vllm_pd.server import arguments
from runtimes.vllm_pd.shaped_engine import ShapedEngine
from runtimes.vllm_pd.status import StartRefused, Status

_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
_WAIT_S = 60.0


async def rehearse(shaped: ShapedEngine, argv: list[str]) -> None:
    """`argv`: of the shaped engine."""
    from runtimes.vllm_pd.shaped import ShapedInstance

    given = arguments(argv, weights=False)
    with tempfile.TemporaryDirectory(prefix="galaxy-rehearsal-") as folder:
        await asyncio.to_thread(make_model, Path(given.model), Path(folder))
        args = arguments(argv, weights=False)
        args.model, args.tokenizer, args.served_model_name = folder, None, ["rehearsal"]
        args.host, args.port = "127.0.0.1", 0
        instance = ShapedInstance(args, Status(None), shaped, {}, load=False)
        running = asyncio.create_task(instance.run())
        started = asyncio.create_task(instance.started.wait())
        try:
            await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                error = instance.status.facts()["error"] or {}
                raise StartRefused(
                    f"the rehearsal failed: {error.get('error')}",
                    str(error.get("field") or "engine"),
                    "see the log",
                )
            await asyncio.to_thread(_ask, int(instance.status.facts()["port"]))
            instance.stop.set()
            await running
        finally:
            started.cancel()
        await asyncio.to_thread(shaped.release, instance.engine)


def make_model(shape: Path, folder: Path) -> None:
    """A folder with the shape's config.json and a tokenizer: its own, or one with a word for each byte."""
    shutil.copy(shape / "config.json", folder)
    tokenizers = [path for path in shape.glob("token*") if path.is_file()]
    if any(path.name == "tokenizer.json" for path in tokenizers):
        for path in tokenizers:
            shutil.copy(path, folder)
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {word: number for number, word in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def _ask(port: int) -> None:
    """What it answers is of no interest, a refusal neither."""
    common: dict[str, Any] = {"model": "rehearsal", "max_tokens": 2, "temperature": 0}
    said = [{"role": "user", "content": "hello"}]
    for path, body in (
        ("/v1/completions", {"prompt": "hello", "stream": True}),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/chat/completions", {"messages": said, "stream": True}),
        ("/v1/models", None),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT_S)
        data = json.dumps({**common, **body}) if body is not None else None
        connection.request("POST" if data else "GET", path, data, {"Content-Type": "application/json"})
        connection.getresponse().read()
        connection.close()
