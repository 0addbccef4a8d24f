"""A container's command as the kubelet would run it, with the model where the pod has it."""

from __future__ import annotations

from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby import command
from kserve_ext.core.standby.facts import Assignment, Timeouts


def assignment(argv: tuple[str, ...], env: tuple[tuple[str, str], ...], **fields: object) -> Assignment:
    made = Assignment(RevisionKey("ns/rev"), InstanceID("pod"), argv, env, 8080, False, 0, Timeouts(), "", ())
    return made._replace(**fields)  # type: ignore[arg-type]


def test_references_are_put_in_as_the_kubelet_does() -> None:
    line = command.of(
        assignment(
            ("run", "--port=$(PORT)", "$$(PORT)", "$(NONE)", "$(B)", "a$b", "$(PORT"),
            (("PORT", "8080"), ("B", "$(PORT)/$(LATER)"), ("LATER", "x")),
        )
    )
    assert line.argv == ("run", "--port=8080", "$(PORT)", "$(NONE)", "8080/$(LATER)", "a$b", "$(PORT")
    assert line.env == {"PORT": "8080", "B": "8080/$(LATER)", "LATER": "x"}


def test_the_model_is_where_the_pod_has_it() -> None:
    line = command.of(
        assignment(
            ("run", "--model=$(MODEL)", "/mnt/models/adapter", "/mnt/models2"),
            (("MODEL", "/mnt/models/"), ("OTHER", "/data/mnt/models")),
            model=(("/mnt/models", "/mnt/galaxy/claim/llama"), ("/same", "/same")),
        )
    )
    assert line.argv == (
        "run",
        "--model=/mnt/galaxy/claim/llama/",
        "/mnt/galaxy/claim/llama/adapter",
        "/mnt/models2",
    )
    assert line.env["OTHER"] == "/data/mnt/models"
