"""KServe's V1 and V2 REST protocols for text generation, beside vLLM's OpenAI routes on the same application.

A V1 or V2 call becomes one completion per text through vLLM's own completion handler, so that limits, sampling
parameters and errors are the same in every protocol. GET /v1/models answers OpenAI's and KServe's clients
with one object. Never touches the engine directly.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError

from runtimes.vllm_pd.tensors import BadTensor, read_request, write_response

_RENAMED = {"max_new_tokens": "max_tokens", "max_output_tokens": "max_tokens", "stop_sequences": "stop"}
_DEFAULT_MAX_TOKENS = 16


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def add_routes(app: FastAPI, version: str) -> None:
    """Puts our routes in front of vLLM's, so that GET /v1/models is ours."""
    app.state.galaxy_version = version
    router = APIRouter()
    for method, path, endpoint in _ROUTES:
        router.add_api_route(path, _refusing(endpoint), methods=[method], response_model=None)
    app.router.routes[0:0] = router.routes


def _refusing(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """KServe's form of an error, not vLLM's: its handlers would catch ours as a server error."""

    @functools.wraps(endpoint)
    async def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return await endpoint(*args, **kwargs)
        except Refusal as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status)

    return answer


async def alive() -> Any:
    return {"status": "alive"}


async def models(raw: Request) -> Any:
    cards = await raw.app.state.openai_serving_models.show_available_models()
    listed = cards.model_dump()
    return {**listed, "models": [card["id"] for card in listed["data"]]}


async def model(raw: Request, model: str) -> Any:
    _known(raw, model)
    cards = await raw.app.state.openai_serving_models.show_available_models()
    card = next((c for c in cards.model_dump()["data"] if c["id"] == model), {"id": model})
    return {**card, "name": model, "ready": await _healthy(raw)}


async def predict(raw: Request, model: str) -> Any:
    _known(raw, model)
    body = await _json(raw)
    instances = body.get("instances", body.get("inputs"))
    if not isinstance(instances, list) or not instances:
        raise Refusal(400, 'instances: a non-empty list is expected in "instances" or "inputs"')
    shared = _object(body.get("parameters"), "parameters")
    asked = []
    for number, instance in enumerate(instances):
        field = f"instances[{number}]"
        if isinstance(instance, str):
            asked.append((instance, shared, field))
            continue
        if not isinstance(instance, dict) or not isinstance(instance.get("prompt"), str):
            raise Refusal(400, f'{field}: a string, or an object with "prompt", is expected')
        own = _object(instance.get("parameters"), f"{field}.parameters")
        asked.append((instance["prompt"], {**shared, **own}, field))
    answers = await asyncio.gather(*(_complete(raw, model, *one) for one in asked))
    return {"predictions": [answer[0] for answer in answers]}


async def server(raw: Request) -> Any:
    version = raw.app.state.galaxy_version
    return {"name": "galaxy-vllm", "version": version, "extensions": ["binary_tensor_data"]}


async def live() -> Any:
    return {"live": True}


async def ready(raw: Request) -> Any:
    healthy = await _healthy(raw)
    return JSONResponse({"ready": healthy}, 200 if healthy else 503)


async def v2_models(raw: Request) -> Any:
    return {"models": _names(raw)}


async def v2_ready(raw: Request, model: str) -> Any:
    _known(raw, model)
    healthy = await _healthy(raw)
    return JSONResponse({"name": model, "ready": healthy}, 200 if healthy else 503)


async def v2_model(raw: Request, model: str) -> Any:
    _known(raw, model)
    return {
        "name": model,
        "platform": "vllm",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}],
    }


async def infer(raw: Request, model: str) -> Response:
    _known(raw, model)
    given = raw.headers.get("inference-header-content-length")
    if given is not None and not given.isdigit():
        raise Refusal(400, "Inference-Header-Content-Length: a number is expected")
    try:
        request = read_request(await raw.body(), int(given) if given else None)
    except BadTensor as error:
        raise Refusal(400, str(error)) from error
    answers = await asyncio.gather(
        *(_complete(raw, model, text, request.parameters, "parameters") for text in request.texts)
    )
    facts = {
        "finish_reason": ",".join(reason for _, reason, _ in answers),
        "completion_tokens": sum(tokens for _, _, tokens in answers),
    }
    body, head = write_response(model, request, [text for text, _, _ in answers], facts)
    if head is None:
        return Response(body, media_type="application/json")
    return Response(
        body,
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(head)},
    )


async def _complete(
    raw: Request, model: str, prompt: str, parameters: dict[str, Any], field: str
) -> tuple[str, str, int]:
    """Text, finish reason and number of tokens of one completion."""
    named = {_RENAMED.get(name, name): value for name, value in parameters.items()}
    named.setdefault("max_tokens", _DEFAULT_MAX_TOKENS)
    for name in ("stream", "n", "prompt", "model", "kv_transfer_params"):
        if name in named:
            raise Refusal(400, f"{field}.{name}: can't be set in this protocol")
    unknown = sorted(set(named) - set(CompletionRequest.model_fields))
    if unknown:
        raise Refusal(400, f"{field}.{unknown[0]}: no such parameter")
    try:
        request = CompletionRequest(model=model, prompt=prompt, **named)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refusal(400, f"{field}.{where}: {first['msg']}") from error
    try:
        answer = await raw.app.state.openai_serving_completion.create_completion(request, raw)
    except (ValueError, VLLMClientError) as error:
        raise Refusal(400, f"{field}: {error}") from error
    if isinstance(answer, ErrorResponse):
        raise Refusal(int(answer.error.code or 500), answer.error.message)
    choice = answer.choices[0]
    return choice.text, choice.finish_reason or "", answer.usage.completion_tokens


def _names(raw: Request) -> list[str]:
    return [path.name for path in raw.app.state.openai_serving_models.base_model_paths]


def _known(raw: Request, model: str) -> None:
    if model not in _names(raw):
        raise Refusal(404, f"model {model!r} is not served here; served: {', '.join(_names(raw))}")


async def _healthy(raw: Request) -> bool:
    return not raw.app.state.engine_client.errored


async def _json(raw: Request) -> dict[str, Any]:
    try:
        body = await raw.json()
    except ValueError as error:
        raise Refusal(400, f"body: not JSON: {error}") from error
    return _object(body, "body")


def _object(value: Any, field: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(400, f"{field}: an object is expected")
    return value


_ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", "/", alive),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{model:path}", model),
    ("POST", "/v1/models/{model:path}:predict", predict),
    ("GET", "/v2", server),
    ("GET", "/v2/health/live", live),
    ("GET", "/v2/health/ready", ready),
    ("GET", "/v2/models", v2_models),
    ("GET", "/v2/models/{model:path}/ready", v2_ready),
    ("GET", "/v2/models/{model:path}", v2_model),
    ("POST", "/v2/models/{model:path}/infer", infer),
)
