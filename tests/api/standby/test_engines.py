"""Pools of level S2: which engines sleep in their pods, whose engine a revision's is, and why it is nobody's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kserve_ext.api import annotations as table
from kserve_ext.api.annotations import PREFIX
from kserve_ext.api.problems import Findings
from kserve_ext.api.standby import assigning, engines, fitting, names, pods
from kserve_ext.api.standby.fitting import Unfit, Wish
from kserve_ext.core.ids import RevisionKey
from tests.api.standby.deployments import deployment

LISTED = "chat=pvc://models/chat, mail=pvc://models/mail"
ARGS = ["--port=$(PORT)", "--model=/mnt/models", "--max-model-len", "2048", "--enable-sleep-mode"]


def of(name: str = "chat", listed: str = LISTED, place: str = "", **container: Any) -> Wish | Unfit | None:
    """Of a service with this name, whose model lies at pvc://models/NAME."""
    served = {"args": [*ARGS, "--served-model-name", name], **container}
    made = deployment(f"{name}-00001", container=served)
    notes = made["metadata"]["annotations"]
    notes |= {names.LEVEL: "S2", names.MODELS: listed, fitting.SOURCE: place or f"pvc://models/{name}"}
    made["spec"]["template"]["metadata"]["annotations"] |= {fitting.SOURCE: place or f"pvc://models/{name}"}
    return fitting.read(made)


def wish(name: str = "chat", **more: Any) -> Wish:
    found = of(name, **more)
    assert isinstance(found, Wish), found
    return found


def reason(**more: Any) -> str:
    found = of(**more)
    assert isinstance(found, Unfit), found
    return found.reason


def environment(wish: Wish) -> dict[str, str]:
    container = pods.pool(wish).pod["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def test_services_with_one_list_share_a_pool_and_each_has_its_own_engine() -> None:
    chat, mail = wish("chat"), wish("mail")
    assert pods.pool(chat).digest == pods.pool(mail).digest
    assert (chat.engine, mail.engine) == ("chat=pvc://models/chat", "mail=pvc://models/mail")
    given = assigning.assignment(mail, RevisionKey("default/mail-00001"), "standby-1")
    assert given.engine == "mail=pvc://models/mail"


def test_the_pod_is_told_how_each_of_its_engines_is_started() -> None:
    env = environment(wish(env=[{"name": "A_SETTING", "value": "1"}, {"name": "K_REVISION", "value": "x"}]))
    told = json.loads(env[names.ENV_ENGINES])
    assert told["env"] == ["A_SETTING"]
    assert [engine["name"] for engine in told["engines"]] == LISTED.split(", ")
    assert told["engines"][0] == {
        "name": "chat=pvc://models/chat",
        "model": "/mnt/galaxy/models/chat",
        "argv": [
            *("python", "-m", "runtimes.vllm_pd", "--max-model-len", "2048", "--enable-sleep-mode"),
            *("--model=/mnt/galaxy/models/chat", "--served-model-name=chat"),
        ],
    }
    assert env[names.ENV_HOST_MIB] == "2048"
    assert env["A_SETTING"] == "1"
    assert "K_REVISION" not in env


@pytest.mark.parametrize(
    "more",
    [
        {"listed": "chat=pvc://models/chat"},
        {"env": [{"name": "A_SETTING", "value": "2"}]},
        {"args": [*ARGS, "--served-model-name=chat", "--tokenizer=/other"]},
        {"resources": {"limits": {"memory": "4Gi"}}},
    ],
)
def test_what_an_engine_was_started_with_makes_another_pool(more: dict[str, Any]) -> None:
    assert pods.pool(wish(**more)).digest != pods.pool(wish()).digest


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"name": "code"}, "its model is /mnt/galaxy/models/code, and kserve-galaxy.io/standby-models has"),
        ({"listed": "talk=pvc://models/chat"}, "serves /mnt/galaxy/models/chat as chat"),
        ({"listed": "pvc://models/chat"}, "serves /mnt/galaxy/models/chat as chat"),
        ({"args": ["--model=/mnt/models"]}, "add --enable-sleep-mode to its args"),
        ({"args": ["--enable-sleep-mode"]}, "have no --model"),
        ({"resources": {}}, "set resources.limits.memory"),
        (
            {"args": [*ARGS, "--served-model-name=chat", "--chat-template=/mnt/models/t.jinja"]},
            "argument --chat-template names a file below /mnt/models",
        ),
        ({"env": [{"name": "PLACE", "value": "/mnt/models"}]}, "env PLACE names a file below /mnt/models"),
    ],
)
def test_whoever_no_engine_can_serve_is_told_why(more: dict[str, Any], says: str) -> None:
    assert says in reason(**more)


def test_a_model_may_be_called_by_a_path_and_have_no_name() -> None:
    found = wish(listed="/data/m, /data/n", args=["--enable-sleep-mode", "--model", "/data/n/"])
    assert found.engine == "/data/n"
    engine = json.loads(environment(found)[names.ENV_ENGINES])["engines"][1]
    assert engine["argv"][-1] == "--model=/data/n"


def test_the_annotation() -> None:
    def read(text: str) -> table.Settings | None:
        findings = Findings()
        settings = table.read({PREFIX + "standby-models": text}, findings)
        return settings if findings else None

    found = read(LISTED)
    assert found is not None
    assert found.standby_models == ("chat=pvc://models/chat", "mail=pvc://models/mail")
    found = read("org/chat:8b=/m")
    assert found is not None
    assert engines.named(found.standby_models) == (engines.Engine("org/chat:8b=/m", "org/chat:8b", "/m"),)
    many = ",".join(f"/m/{n}" for n in range(17))
    for wrong in ("", "chat", "chat=models/chat", "a=/m,a=/n", "/m,/m", "a b=/m", "pvc://", "s3://m/x", many):
        assert read(wrong) is None, wrong


def test_level_and_models_go_together() -> None:
    for given in ({"standby-level": "S2"}, {"standby-models": LISTED}):
        findings = Findings()
        settings = table.read({PREFIX + key: value for key, value in given.items()}, findings)
        table.check_together(settings, findings)
        (problem,) = findings.problems
        assert next(iter(given)) in problem.field
        assert "add kserve-galaxy.io/standby-" in problem.remedy
