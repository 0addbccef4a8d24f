"""What the command reads from files, and what it says when they are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from kserve_ext.cli.__main__ import main
from kserve_ext.cli.documents import load
from kserve_ext.cli.embedded.elastic import document
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.embedded.parts import parts
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.verbs import logs
from kserve_ext.core.control.facts import Bounds
from kserve_ext.rpc.process import start_ticks


def test_documents_of_a_folder_come_in_order_of_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: InferenceService\nmetadata: {name: x}\n---\n---\nkind: CSR")
    (tmp_path / "a.json").write_text(
        '{"kind": "List", "items": [{"kind": "isvc", "metadata": {"name": "i"}}]}'
    )
    (tmp_path / "c.txt").write_text("not read")
    found = load((str(tmp_path),))
    assert [s.where.rpartition("/")[2] for s in found] == [
        "a.json, item 1",
        "b.yaml, document 1",
        "b.yaml, document 2",
    ]
    assert found[0].names("team") == ("team", "i")
    assert found[2].kind().kind == "ClusterServingRuntime"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "is not an object"),
        ("", "there is no object"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(Failure, match=what):
        load((str(file),))


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("kind: isvc\nspec:\n  predictor:\n    minReplicas: 0\n    minReplicas: 3\n", "minReplicas", (4, 5)),
        ("kind: isvc\n---\nspec: {a: {b: 1,\n  b: 1}}\n", "b", (3, 4)),
        ('{"kind": "isvc",\n "kind": "isvc"}', "kind", (1, 2)),
    ],
)
def test_a_key_that_is_there_twice(tmp_path: Path, text: str, key: str, lines: tuple[int, int]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(Failure, match=f"has the key {key} twice") as caught:
        load((str(file),))
    assert caught.value.why == f"line {lines[1]}: {key} is set already, in line {lines[0]}"


def test_merged_keys_are_not_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "kind: isvc\na: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: [*a, *b], x: 4}\n'1': 1\n1: 2\n"
    )
    [found] = load((str(file),))
    assert found.document["b"] == {"x": 1, "y": 3}
    assert found.document["c"] == {"x": 4, "y": 2}


def test_paths_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="can't be read"):
        load((str(tmp_path / "none.yaml"),))
    with pytest.raises(Failure, match=r"has no \.yaml"):
        load((str(tmp_path),))


def test_an_unknown_kind_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("kind: InferenceServce\nmetadata: {}")
    with pytest.raises(Failure) as caught:
        load((str(file),))[0].kind()
    assert caught.value.do == "did you mean InferenceService?"


def test_a_pid_counts_only_with_its_start_time(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.run.mkdir()
    me = os.getpid()
    ticks = start_ticks(me)
    (folder.run / "a.json").write_text(f'{{"id": "a", "kind": "node", "pid": {me}, "started": {ticks}}}')
    (folder.run / "b.json").write_text(f'{{"id": "b", "kind": "node", "pid": {me}, "started": {ticks - 1}}}')
    (folder.run / "c.json").write_text("{")
    assert [part.id for part in folder.living()] == ["a"]
    assert sorted(folder.run_files()) == ["a", "b"]


def test_a_cluster_that_does_not_run_is_said(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(Failure, match="there is no cluster here"):
        folder.required()
    folder.write_cluster({"supervisor": {"pid": os.getpid(), "started": 1}})
    with pytest.raises(Failure, match="the cluster does not run"):
        folder.required()
    assert not folder.runs()


def test_parts_without_a_supervisor_are_used_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(tmp_path)
    folder.run.mkdir()
    folder.write_cluster({"objects": "h:1"})
    me = os.getpid()
    facts = f'{{"id": "a", "kind": "node", "pid": {me}, "started": {start_ticks(me)}}}'
    (folder.run / "a.json").write_text(facts)
    assert folder.required() == folder.required() == {"objects": "h:1"}
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("warning: its supervisor is gone") == 1
    assert f"do: galaxy up --data {folder.root}" in printed.err


def test_parts_of_a_cluster(tmp_path: Path) -> None:
    cluster = {
        "controller": "127.0.0.1:1",
        "http": "127.0.0.1:2",
        "domain": "d",
        "counts": {"dispatch": 2, "schedule": 1, "cluster-mgr": 1, "node": 2},
        "node": {"cpu_milli": 500, "memory_mib": 64, "gpus": 1},
    }
    found = {part.id: part.argv[1:] for part in parts(cluster, tmp_path)}
    assert list(found) == [
        "controller-0",
        "objects-0",
        "cluster-mgr-0",
        "schedule-0",
        "dispatch-0",
        "dispatch-1",
        "node-0",
        "node-1",
    ]
    told = found["controller-0"]
    assert told[told.index("--port") + 1] == "1"
    assert "schedule=1:1" in told
    assert "--functions" not in found["node-1"]
    assert found["dispatch-1"][:2] == ("-m", "activator_replacement")
    assert found["node-1"][-6:] == ("--cpu", "500m", "--memory", "64Mi", "--gpus", "1")


def test_parts_of_an_elastic_cluster(tmp_path: Path) -> None:
    bounds = {"dispatch": Bounds(1, 1), "schedule": Bounds(2, 8), "cluster-mgr": Bounds(1, 3)}
    cluster = {
        "controller": "127.0.0.1:1",
        "http": "127.0.0.1:2",
        "domain": "d",
        "counts": {kind: b.min for kind, b in bounds.items()} | {"node": 1},
        "elastic": document(bounds, ("schedule=500",), 5.0),
        "node": {"cpu_milli": 500, "memory_mib": 64, "gpus": 1},
    }
    found = {part.id: " ".join(part.argv) for part in parts(cluster, tmp_path)}
    assert [name for name in found if "schedule" in name] == ["schedule-0", "schedule-1"]
    assert "--bounds schedule=2:8 --bounds cluster-mgr=1:3" in found["controller-0"].replace(
        "--bounds dispatch=1:1 ", ""
    )
    assert "--threshold schedule=500 --stable 5.0" in found["controller-0"]
    assert found["node-0"].endswith("--functions autoscaler_shim")


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--schedule", "8:2", "the most is less than the least"),
        ("--schedule", "two", "e.g. 2:8"),
        ("--dispatch", "0", "1 to 64"),
        ("--cluster-mgr", "1:99", "1 to 64"),
        ("--threshold", "schedule=none", "e.g. schedule=500"),
        ("--threshold", "nodes=5", "none of dispatch"),
    ],
)
def test_a_bad_number_of_functions_is_refused_by_name(option: str, text: str, said: str) -> None:
    result = CliRunner().invoke(main, ["up", option, text])
    assert result.exit_code == 2
    assert option in result.output
    assert said in " ".join(result.output.split())


def test_logs_of_a_service_a_revision_an_instance_and_a_part(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    names = [
        "tiny-predictor-00001-0123abcd",
        "tiny-predictor-00002-0123abce",
        "tiny-pd-predictor-00001-0123abcf",
    ]
    for name in names:
        place = tmp_path / "nodes" / "node-0" / "instances" / name
        place.mkdir(parents=True)
        (place / "log").write_text(f"{name}\n")
    folder.log.mkdir()
    (folder.log / "node-0.log").write_text("part\n")

    def found(name: str) -> list[str]:
        return sorted(path.parent.name for path in logs.files(folder, name))

    assert found("tiny") == names[:2]
    assert found("tiny-predictor-00001") == names[:1]
    assert found(names[2]) == names[2:]
    assert found("node-0") == ["log"]
    assert found("tin") == []
