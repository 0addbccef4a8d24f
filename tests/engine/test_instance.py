"""One unified instance: every protocol, errors, drain, a dying engine, and starts that can't succeed."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.engine.instances import WAIT_S, Instance, Nursery, until

pytestmark = pytest.mark.engine


def test_becomes_ready_after_its_first_token(unified: Instance) -> None:
    names = [event["name"] for event in unified.status()["events"]]
    assert set(names) >= {"imported", "listening", "weights_loaded", "engine_ready", "first_token"}
    assert names.index("engine_ready") < names.index("first_token")
    assert unified.get("/ready").json == {"ready": True, "phase": "ready"}
    assert unified.get("/health").status == 200


def test_a_peer_that_hangs_up_does_not_end_the_instance(unified: Instance) -> None:
    facts = Path(f"/proc/{unified.pid}/status").read_text()
    ignored = int(facts.partition("SigIgn:")[2].split()[0], 16)
    assert ignored >> (signal.SIGPIPE - 1) & 1, "writing to a closed connection would"


def test_completion_and_chat_with_usage(unified: Instance) -> None:
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 5, "ignore_eos": True}
    answer = unified.ask("/v1/completions", body, {"x-request-id": "one"})
    assert answer.json["usage"]["completion_tokens"] == 5
    assert answer.headers["x-request-id"] == "one"
    assert answer.headers["x-kv-transfer"] == "none;reason=one-engine"
    chat = unified.ask(
        "/v1/chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    ).json
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert (
        chat["usage"]["total_tokens"] == chat["usage"]["prompt_tokens"] + chat["usage"]["completion_tokens"]
    )


def test_the_openai_prefix_means_the_same(unified: Instance) -> None:
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 2, "temperature": 0}
    assert (
        unified.ask("/openai/v1/completions", body).json["choices"][0]["text"]
        == unified.ask("/v1/completions", body).json["choices"][0]["text"]
    )
    assert unified.get("/openai/v1/models").json["data"][0]["id"] == "tiny"


def test_streams_end_with_done_and_carry_usage(unified: Instance) -> None:
    body = {
        "prompt": "hello",
        "max_tokens": 4,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    lines = list(unified.stream(body))
    assert lines[-1] == b"data: [DONE]"
    assert json.loads(lines[-2][6:])["usage"]["completion_tokens"] == 4


def test_the_official_openai_client(unified: Instance) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{unified.port}/openai/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tiny"]
    with client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "count"}], max_tokens=6, stream=True
    ) as stream:
        texts = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    assert any(texts)
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="x", max_tokens=100_000)


def test_a_client_that_goes_frees_the_engine(unified: Instance) -> None:
    for _ in unified.stream({"prompt": "hello", "max_tokens": 1900, "ignore_eos": True}):
        break

    def idle() -> bool:
        lines = unified.get("/metrics").body.decode().splitlines()
        running = [line for line in lines if line.startswith("vllm:num_requests_running{")]
        return bool(running) and running[0].endswith(" 0.0")

    until(idle, "no running request")


def test_models_answers_both_kinds_of_client(unified: Instance) -> None:
    both = unified.get("/v1/models").json
    assert both["object"] == "list"
    assert both["data"][0]["id"] == "tiny"
    assert both["models"] == ["tiny"]
    one = unified.get("/v1/models/tiny").json
    assert (one["name"], one["ready"], one["id"]) == ("tiny", True, "tiny")
    missing = unified.get("/v1/models/other")
    assert missing.status == 404
    assert "tiny" in missing.json["error"]


def test_v1_predict(unified: Instance) -> None:
    answer = unified.ask(
        "/v1/models/tiny:predict",
        {
            "instances": ["hello", {"prompt": "hello", "parameters": {"max_new_tokens": 2}}],
            "parameters": {"temperature": 0, "max_tokens": 4},
        },
    )
    assert answer.status == 200
    long, short = answer.json["predictions"]
    assert long.startswith(short)
    assert long != short


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "instances"),
        ({"instances": "hello"}, "instances"),
        ({"instances": [7]}, "instances[0]"),
        ({"instances": ["a"], "parameters": {"temprature": 1}}, "temprature"),
        ({"instances": ["a"], "parameters": {"temperature": "hot"}}, "temperature"),
        ({"instances": ["a"], "parameters": {"max_tokens": 99999}}, "max_tokens"),
        (b"{", "body"),
    ],
)
def test_v1_bad_requests_name_the_field(unified: Instance, body: Any, field: str) -> None:
    answer = unified.ask("/v1/models/tiny:predict", body)
    assert answer.status == 400
    assert field in answer.json["error"]


def test_v2_metadata_and_health(unified: Instance) -> None:
    assert unified.get("/v2").json["name"]
    assert unified.get("/v2/health/live").json == {"live": True}
    assert unified.get("/v2/health/ready").json == {"ready": True}
    assert unified.get("/v2/models/tiny").json["inputs"][0]["datatype"] == "BYTES"
    assert unified.get("/v2/models/tiny/ready").json == {"name": "tiny", "ready": True}
    assert unified.get("/v2/models/other/ready").status == 404


def test_v2_infer_in_json_and_in_binary(unified: Instance) -> None:
    tensor: dict[str, Any] = {"name": "text_input", "shape": [2], "datatype": "BYTES"}
    parameters = {"max_tokens": 4, "temperature": 0}
    body = {"id": "7", "inputs": [{**tensor, "data": ["hello", "goodbye"]}], "parameters": parameters}
    plain = unified.ask("/v2/models/tiny/infer", body).json
    assert plain["id"] == "7"
    assert plain["outputs"][0]["shape"] == [2]
    raw = b"".join(struct.pack("<I", len(text)) + text for text in (b"hello", b"goodbye"))
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}],
            "parameters": {**parameters, "binary_data_output": True},
        }
    ).encode()
    answer = unified.ask(
        "/v2/models/tiny/infer",
        head + raw,
        {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"},
    )
    length = int(answer.headers["inference-header-content-length"])
    size = json.loads(answer.body[:length])["outputs"][0]["parameters"]["binary_data_size"]
    assert len(answer.body) == length + size
    first = plain["outputs"][0]["data"][0].encode()
    assert answer.body[length : length + 4 + len(first)] == struct.pack("<I", len(first)) + first


def test_the_official_kserve_client(unified: Instance) -> None:
    kserve = pytest.importorskip("kserve")
    base = f"http://127.0.0.1:{unified.port}"

    async def ask() -> tuple[Any, Any, bool]:
        v1 = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1"))
        v2 = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
        tensor = kserve.InferInput(name="text_input", shape=[1], datatype="BYTES", data=["hello"])
        request = kserve.InferRequest(
            model_name="tiny", infer_inputs=[tensor], parameters={"max_tokens": 3, "temperature": 0}
        )
        body = {"instances": ["hello"], "parameters": {"max_tokens": 3, "temperature": 0}}
        answers = (
            await v1.infer(base, body, model_name="tiny"),
            await v2.infer(base, request, model_name="tiny"),
            await v2.is_model_ready(base, "tiny") and await v1.is_model_ready(base, "tiny"),
        )
        await v1.close()
        await v2.close()
        return answers

    predicted, inferred, ready = asyncio.run(ask())
    assert ready
    assert predicted["predictions"] == inferred.outputs[0].data


def test_v2_bad_request(unified: Instance) -> None:
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
    answer = unified.ask("/v2/models/tiny/infer", body)
    assert answer.status == 400
    assert "datatype" in answer.json["error"]


def test_the_timeline_of_a_request(unified: Instance) -> None:
    unified.tokens([5, 6, 7])
    _, answer = unified.tokens([5, 6, 7])
    facts = unified.get(f"/galaxy/requests/{answer.headers['x-request-id']}").json
    names = [name for name, _, _ in facts["marks"]]
    assert facts["kv"] == {"rung": "none", "reason": "one-engine"}
    assert names == ["received", "tokenised", "first_token", "last_token", "answered"]
    assert unified.get("/galaxy/requests/unknown").status == 404


def test_term_finishes_streams_refuses_connections_and_exits_zero(nursery: Nursery) -> None:
    instance = nursery.start(env={"FAULT": "die", "FAULT_FILE": "/nonexistent"}).ready()
    port = instance.port
    lines: list[bytes] = []
    begun = threading.Event()

    def read() -> None:
        body = {"prompt": "hello", "max_tokens": 60, "ignore_eos": True, "return_token_ids": True}
        for line in instance.stream(body):
            lines.append(line)
            begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(WAIT_S)
    instance.kill()
    until(lambda: instance.status()["phase"] == "draining", "draining")
    thread.join(WAIT_S)
    assert lines[-1] == b"data: [DONE]"
    events = (json.loads(line.removeprefix(b"data: ")) for line in lines[:-1])
    assert sum(len(choice["token_ids"]) for event in events for choice in event["choices"]) == 60
    assert instance.exited()["code"] == 0
    assert port == instance.status()["port"]
    (left,) = json.loads((instance.folder / "requests.json").read_text()).values()
    assert [name for name, _, _ in left["marks"]][-2:] == ["last_token", "answered"]


def test_drain_is_bounded(nursery: Nursery) -> None:
    instance = nursery.start("--drain-seconds", "1", env={"FAULT": "die", "FAULT_FILE": "/nonexistent"})
    instance.ready()
    stream = instance.stream({"prompt": "hello", "max_tokens": 1900, "ignore_eos": True})
    next(stream)
    instance.kill()
    assert instance.exited()["code"] == 0  # 1900 tokens would take 40 s
    assert instance.status()["phase"] == "draining"


def test_an_engine_that_dies_ends_the_stream_with_an_error_and_no_done(
    nursery: Nursery, tmp_path: Path
) -> None:
    file = tmp_path / "armed"
    instance = nursery.start(env={"FAULT": "die", "FAULT_FILE": str(file)}).ready()
    lines = []
    for line in instance.stream({"prompt": "hello", "max_tokens": 500, "ignore_eos": True}):
        lines.append(line)
        if len(lines) == 3:
            file.touch()
    assert "error" in json.loads(lines[-1].removeprefix(b"data: "))
    assert b"data: [DONE]" not in lines
    assert instance.exited()["code"] == 1
    status = instance.status()
    assert status["phase"] == "failed"
    assert "engine has died" in status["error"]["error"]


def test_an_engine_that_hangs_ends_its_instance_and_one_that_is_slow_does_not(
    nursery: Nursery, tmp_path: Path
) -> None:
    file = tmp_path / "armed"
    instance = nursery.start("--hung-seconds", "10", env={"FAULT": "hang", "FAULT_FILE": str(file)}).ready()
    stream = instance.stream({"prompt": "hello", "max_tokens": 500, "ignore_eos": True})
    lines = [next(stream) for _ in range(3)]
    file.touch()
    slow = threading.Timer(1.0, file.unlink)  # a step that takes a second
    slow.start()
    lines += [next(stream) for _ in range(3)]
    slow.join()
    file.touch()
    lines += stream
    assert "error" in json.loads(lines[-1].removeprefix(b"data: "))
    assert b"data: [DONE]" not in lines
    assert instance.exited()["code"] == 1
    assert "no step has ended for 10 s" in instance.status()["error"]["error"]
    assert "hanging" in instance.log, "the log shows where"


def test_term_while_loading_ends_it(nursery: Nursery) -> None:
    instance = nursery.start()
    until(lambda: instance.status()["phase"] == "loading" and instance.port, "loading")
    answer = instance.ask("/v1/completions", {"model": "tiny", "prompt": "x"})
    assert answer.status in (200, 503)
    instance.kill()
    assert instance.exited() | {"at": 0} == {"code": 0, "signal": 0, "at": 0}


def _broken(model: Path, folder: Path, how: str) -> Path:
    copy = folder / "model"
    shutil.copytree(model, copy, symlinks=False)
    weights = copy / "model.safetensors"
    if how == "config is not JSON":
        (copy / "config.json").write_text("{")
    elif how == "no config":
        (copy / "config.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "weights cut off":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "no tokenizer":
        (copy / "tokenizer.json").unlink()
    elif how == "unknown architecture":
        config = json.loads((copy / "config.json").read_text())
        config["architectures"], config["model_type"] = ["NobodyForCausalLM"], "nobody"
        (copy / "config.json").write_text(json.dumps(config))
    elif how == "wrong shapes":
        config = json.loads((copy / "config.json").read_text())
        config["intermediate_size"] *= 2
        (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("config is not JSON", "config.json"),
        ("no config", "config.json"),
        ("no weights", "weights"),
        ("weights cut off", "cut off"),
        ("no tokenizer", "tokenizer"),
        ("unknown architecture", "nobody"),
        ("wrong shapes", ""),
    ],
)
def test_broken_models_are_refused_for_good(
    nursery: Nursery, tiny_model: Path, tmp_path: Path, how: str, says: str
) -> None:
    instance = nursery.start(model=_broken(tiny_model, tmp_path, how))
    assert instance.exited()["code"] == 2, instance.log[-2000:]
    error = instance.status()["error"]
    assert says.lower() in error["error"].lower()
    assert error["field"] == "--model"
    assert error["remedy"]
    assert instance.log.count("\nerror: ") + instance.log.startswith("error: ") == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["--max-model-len", "100000"], "--max-model-len"),
        (["--dtype", "float7"], "--dtype"),
        (["--role", "chief"], "--role"),
        (["--model", "/nonexistent/model"], "--model"),
        (["--enable-auto-tool-choice"], "--enable-auto-tool-choice"),
    ],
)
def test_bad_arguments_are_refused_for_good(nursery: Nursery, options: list[str], field: str) -> None:
    instance = nursery.start(*options)
    assert instance.exited()["code"] == 2, instance.log[-2000:]
    assert instance.status()["error"]["field"] == field
    assert instance.status()["phase"] == "failed"


def test_a_taken_port_is_this_nodes_trouble(nursery: Nursery, unified: Instance) -> None:
    instance = nursery.start("--port", str(unified.port))
    assert instance.exited()["code"] == 1
    assert instance.status()["error"]["field"] == "--port"


def test_killed_instances_leave_their_signal(nursery: Nursery) -> None:
    instance = nursery.start().ready()
    instance.kill(signal.SIGKILL)
    assert instance.exited()["signal"] == signal.SIGKILL
