"""The parts of the e2e stack that need neither root nor a build."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from e2e import build
from e2e.stack import certificate_stub, dns, ingress_stub, processes
from e2e.stack.certificates import Authority
from e2e.stack.kubelet import environment, mounts, programs, volumes
from e2e.stack.place import Place, pod_address, pod_number
from tools.setup.layout import Layout


def question(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return (
        b"\x12\x34" + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    )


def service(name: str, **spec: object) -> dict[str, object]:
    return {"metadata": {"namespace": "ns", "name": name}, "spec": spec}


@pytest.fixture
def names() -> dns.Names:
    known = dns.Names()
    known.service("SET", service("web", clusterIP="10.96.0.7"))
    known.service("SET", service("alias", externalName="web.ns.svc.cluster.local"))
    known.service("SET", service("circle", externalName="circle.ns.svc.cluster.local"))
    known.service("SET", service("headless", clusterIP="None"))
    known.endpoints(
        "SET",
        {
            "metadata": {"namespace": "ns", "name": "headless"},
            "subsets": [{"addresses": [{"ip": "10.244.0.2"}, {"ip": "10.244.0.3"}]}],
        },
    )
    return known


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web.ns.svc.cluster.local", ["10.96.0.7"]),
        ("WEB.ns.svc.cluster.local.", ["10.96.0.7"]),
        ("alias.ns.svc.cluster.local", ["10.96.0.7"]),
        ("circle.ns.svc.cluster.local", []),
        ("headless.ns.svc.cluster.local", ["10.244.0.2", "10.244.0.3"]),
        ("web.other.svc.cluster.local", None),
        ("web.ns", None),
        ("example.com", None),
    ],
)
def test_names(names: dns.Names, name: str, expected: list[str] | None) -> None:
    assert names.lookup(name) == expected


def test_a_reply_echoes_the_question(names: dns.Names) -> None:
    query = question("web.ns.svc.cluster.local")
    answer = dns.reply(names, query)
    assert answer[:2] == query[:2]
    assert struct.unpack("!HHHHH", answer[2:12]) == (0x8580, 1, 1, 0, 0)
    assert answer[12 : len(query)] == query[12:]
    assert answer.endswith(socket.inet_aton("10.96.0.7"))


def test_other_record_types_have_no_answer_and_unknown_names_do_not_exist(names: dns.Names) -> None:
    answer = dns.reply(names, question("web.ns.svc.cluster.local", 28))
    assert struct.unpack("!HHH", answer[2:8]) == (0x8580, 1, 0)
    assert dns.reply(names, question("example.com"))[3] & 0xF == 3


POD: dict[str, dict[str, object]] = {
    "metadata": {"name": "p-1", "namespace": "ns", "uid": "u", "labels": {"a/b": "c"}},
    "spec": {"nodeName": "node-1", "serviceAccountName": "account"},
}


async def fetch(plural: str, namespace: str, name: str) -> environment.Object | None:
    assert namespace == "ns"
    return {"configmaps/c": {"data": {"k": "v"}}, "secrets/s": {"data": {"k": "dg=="}}}.get(
        f"{plural}/{name}"
    )


def env_of(*entries: dict[str, object]) -> dict[str, str]:
    container = {"env": list(entries), "resources": {"limits": {"cpu": "2"}}}
    return asyncio.run(environment.of_container(container, POD, "10.244.0.9", fetch))


def reference(name: str, **source: object) -> dict[str, object]:
    return {"name": name, "valueFrom": source}


def test_environment_of_a_container() -> None:
    env = env_of(
        reference("NAME", fieldRef={"fieldPath": "metadata.name"}),
        reference("IP", fieldRef={"fieldPath": "status.podIP"}),
        reference("LABEL", fieldRef={"fieldPath": "metadata.labels['a/b']"}),
        reference("CPU", resourceFieldRef={"resource": "limits.cpu"}),
        reference("MAP", configMapKeyRef={"name": "c", "key": "k"}),
        reference("SECRET", secretKeyRef={"name": "s", "key": "k"}),
        reference("ABSENT", secretKeyRef={"name": "none", "key": "k", "optional": True}),
        {"name": "URL", "value": "http://$(IP):80/$(UNKNOWN)/$$(IP)"},
        {"name": "EMPTY"},
    )
    expected = {
        "HOSTNAME": "p-1",
        "NAME": "p-1",
        "IP": "10.244.0.9",
        "LABEL": "c",
        "CPU": "2",
        "MAP": "v",
        "SECRET": "v",
        "URL": "http://10.244.0.9:80/$(UNKNOWN)/$(IP)",
        "EMPTY": "",
    }
    assert env == env | expected
    assert "ABSENT" not in env


def test_references_in_arguments_are_expanded_as_in_values() -> None:
    assert environment.expand("--port=$(PORT) $$(PORT) $(NONE)", {"PORT": "1"}) == "--port=1 $(PORT) $(NONE)"


@pytest.mark.parametrize(
    "entry",
    [
        reference("A", fieldRef={"fieldPath": "status.unknown"}),
        reference("A", configMapKeyRef={"name": "c", "key": "other"}),
        reference("A", fileKeyRef={}),
    ],
)
def test_what_the_environment_cannot_have_is_said(entry: dict[str, object]) -> None:
    with pytest.raises(environment.BadEnvironment):
        env_of(entry)


async def no_token(namespace: str, account: str, spec: environment.Object) -> environment.Object:
    raise AssertionError("no token is asked for")


def pod_volumes(
    spec: environment.Object,
    folder: Path,
    fetch: volumes.Fetch,
    request: volumes.RequestToken = no_token,
) -> volumes.Volumes:
    return volumes.Volumes({**POD, "spec": spec}, folder, fetch, request, folder / "host", "10.244.0.9")


VOLUMES = {"volumes": [{"name": "v", "secret": {"secretName": "s"}}, {"name": "other", "emptyDir": {}}]}


def there(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("..")}


def test_a_secret_becomes_a_folder_that_follows_it(tmp_path: Path) -> None:
    held = {"k": "dg=="}

    async def changing(plural: str, namespace: str, name: str) -> environment.Object | None:
        assert (plural, namespace, name) == ("secrets", "ns", "s")
        return {"data": held}

    made = pod_volumes(VOLUMES, tmp_path, changing)
    asyncio.run(made.fill())
    link = tmp_path / "v" / "..data"
    asyncio.run(made.fill())
    assert (tmp_path / "v" / "k").read_bytes() == b"v"
    before = link.readlink()
    asyncio.run(made.fill())
    assert link.readlink() == before, "nothing has changed"
    held |= {"k": "dw==", "other": "bw=="}
    asyncio.run(made.fill())
    assert link.readlink() != before
    assert there(tmp_path / "v") == {"k": b"w", "other": b"o"}
    del held["other"]
    asyncio.run(made.fill())
    assert there(tmp_path / "v") == {"k": b"w"}
    assert len(list((tmp_path / "v").iterdir())) == 3, "the link, what it names, and the one file"
    container = {"volumeMounts": [{"name": "v", "mountPath": "/a/b"}, {"name": "other", "mountPath": "/c"}]}
    assert made.mounts(container) == [
        (tmp_path / "v", Path("/a/b"), False),
        (tmp_path / "other", Path("/c"), False),
    ]


def test_keys_that_need_not_be_there_are_left_out(tmp_path: Path) -> None:
    items = [{"key": "k", "path": "k"}, {"key": "none", "path": "none"}]
    volume = {"name": "v", "configMap": {"name": "c", "items": items, "optional": True}}
    asyncio.run(pod_volumes({"volumes": [volume]}, tmp_path, fetch).fill())
    assert there(tmp_path / "v") == {"k": b"v"}


def test_a_secret_that_is_not_there_is_said(tmp_path: Path) -> None:
    spec = {"volumes": [{"name": "v", "secret": {"secretName": "none"}}]}
    with pytest.raises(mounts.BadVolume, match="secret ns/none not found"):
        asyncio.run(pod_volumes(spec, tmp_path, fetch).fill())


def test_the_volume_of_every_pods_account_is_left_out_and_an_unknown_kind_is_said(tmp_path: Path) -> None:
    account = {"name": "kube-api-access-x", "projected": {"sources": [{"unknown": {}}]}}
    made = pod_volumes({"volumes": [account]}, tmp_path, fetch)
    asyncio.run(made.fill())
    assert made.mounts({"volumeMounts": [{"name": "kube-api-access-x", "mountPath": "/a"}]}) == []
    with pytest.raises(mounts.BadVolume, match="volume n: nfs is not supported"):
        asyncio.run(pod_volumes({"volumes": [{"name": "n", "nfs": {}}]}, tmp_path, fetch).fill())


def test_a_token_is_bound_to_its_pod_and_renewed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, environment.Object]] = []

    async def request(namespace: str, account: str, spec: environment.Object) -> environment.Object:
        asked.append((namespace, account, spec))
        return {"token": f"t{len(asked)}"}

    sources = [
        {"serviceAccountToken": {"path": "token", "audience": "a", "expirationSeconds": 600}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"configMap": {"name": "c", "items": [{"key": "k", "path": "deep/k"}]}},
    ]
    spec = {**POD["spec"], "volumes": [{"name": "v", "projected": {"sources": sources}}]}
    now = 1000.0
    monkeypatch.setattr("e2e.stack.kubelet.volumes.time.time", lambda: now)
    made = pod_volumes(spec, tmp_path, fetch, request)
    asyncio.run(made.fill())
    asyncio.run(made.fill())
    bound = {"apiVersion": "v1", "kind": "Pod", "name": "p-1", "uid": "u"}
    wanted = {"audiences": ["a"], "expirationSeconds": 600, "boundObjectRef": bound}
    assert asked == [("ns", "account", wanted)]
    assert (tmp_path / "v" / "labels").read_text() == 'a/b="c"\n'
    assert (tmp_path / "v" / "deep" / "k").read_text() == "v"
    now += 480
    made.pod = {**made.pod, "metadata": {**POD["metadata"], "labels": {"a/b": "d"}}}
    asyncio.run(made.fill())
    assert (tmp_path / "v" / "token").read_text() == "t2"
    assert (tmp_path / "v" / "labels").read_text() == 'a/b="d"\n'


def test_paths_of_the_node_and_claims_are_folders_of_the_stack(tmp_path: Path) -> None:
    async def cluster(plural: str, namespace: str, name: str) -> environment.Object | None:
        known: dict[tuple[str, str, str], environment.Object] = {
            ("persistentvolumeclaims", "ns", "models"): {"spec": {"volumeName": "pv"}},
            ("persistentvolumeclaims", "ns", "loose"): {"spec": {}},
            ("persistentvolumes", "", "pv"): {"spec": {"hostPath": {"path": "/models"}}},
        }
        return known.get((plural, namespace, name))

    host = tmp_path / "host"
    (host / "models").mkdir(parents=True)
    spec = {
        "volumes": [
            {"name": "run", "hostPath": {"path": "/run/x", "type": "DirectoryOrCreate"}},
            {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
        ]
    }
    made = pod_volumes(spec, tmp_path, cluster)
    asyncio.run(made.fill())
    listed = [
        {"name": "run", "mountPath": "/run/x", "readOnly": True},
        {"name": "models", "mountPath": "/m", "subPath": "tiny"},
    ]
    assert made.mounts({"volumeMounts": listed}) == [
        (host / "run" / "x", Path("/run/x"), True),
        (host / "models" / "tiny", Path("/m"), False),
    ]
    for volume, why in (
        ({"hostPath": {"path": "/gone", "type": "Directory"}}, "hostPath /gone: .* is no Directory"),
        ({"persistentVolumeClaim": {"claimName": "loose"}}, "ns/loose is not bound"),
    ):
        with pytest.raises(mounts.BadVolume, match=why):
            asyncio.run(pod_volumes({"volumes": [{"name": "v", **volume}]}, tmp_path, cluster).fill())


def test_a_mount_point_that_is_not_there_is_made_in_memory(tmp_path: Path) -> None:
    assert mounts.mounting(["true"], []) == ["true"]
    mount = mounts.Mount(tmp_path, tmp_path / "no" / "such")
    *shell, script, name, program = mounts.mounting(["true"], [mount])
    assert (shell, name, program) == (["sh", "-ec"], "sh", "true")
    assert script.splitlines() == [
        f"mount -t tmpfs tmpfs {tmp_path}",
        f"mkdir -p {tmp_path}/no/such",
        f"mount --bind {tmp_path} {tmp_path}/no/such",
        'exec "$@"',
    ]
    assert "tmpfs" not in mounts.mounting(["true"], [mounts.Mount(tmp_path, tmp_path)])[2]
    with pytest.raises(mounts.BadVolume, match="but the root"):
        mounts.mounting(["true"], [mounts.Mount(tmp_path, Path("/no-such/folder"))])


def test_a_mount_that_would_hide_the_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(mounts.BadVolume, match="would hide"):
        mounts.mounting(["true"], [mounts.Mount(tmp_path / "a", tmp_path)])


def test_a_certificate_is_vouched_for_by_its_authority() -> None:
    authority = Authority("a")
    data = certificate_stub.secret_data(authority, ["pod", "10.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=base64.b64decode(data["ca.crt"]).decode())
    found = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))
    found.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pod"]


def test_programs_of_images() -> None:
    assert programs.argv({"image": programs.stock_image("activator")}) == [str(build.program("activator"))]
    ours = programs.argv({"image": "registry:5000/x/galaxy-activator@sha256:0", "args": ["-v"]})
    assert ours == [sys.executable, "-m", "activator_replacement.knative", "-v"]
    command = ["/usr/bin/python3", "-m", "thing"]
    assert programs.argv({"image": "any", "command": command}) == [sys.executable, "-m", "thing"]
    with pytest.raises(programs.UnknownImage, match="no program stands for 'nginx'"):
        programs.argv({"image": "docker.io/library/nginx:1"})


def test_a_stack_is_given_programs_for_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("e2e.stack.place.root", lambda: tmp_path)
    place = Place("x")
    place.folder.mkdir()
    assert programs.given(place) == {}
    programs.give(place, {"one": ["/bin/one"]})
    programs.give(place, {"two": ["/bin/two", "-x"]})
    container = {"image": "somewhere/two:1", "args": ["-y"]}
    assert programs.argv(container, programs.given(place)) == ["/bin/two", "-x", "-y"]
    with pytest.raises(programs.UnknownImage, match=r"known: .*, one, two\)"):
        programs.argv({"image": "three"}, programs.given(place))


def test_a_stack_whose_owner_is_dead_is_abandoned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("e2e.stack.place.root", lambda: tmp_path)
    place = Place("x")
    place.folder.mkdir()
    assert processes.abandoned(place)
    processes.Record(processes.of_pid(os.getpid())).write(place)
    assert not processes.abandoned(place)
    with subprocess.Popen(["sleep", "60"]) as child:
        owner = processes.of_pid(child.pid)
        processes.Record(owner).write(place)
        assert not processes.abandoned(place)
        child.kill()
    assert processes.abandoned(place)
    processes.Record(processes.Process(os.getpid(), 1)).write(place)
    assert processes.abandoned(place), "another process with the owner's id"
    processes.Record(None).write(place)
    assert not processes.abandoned(place)


@pytest.mark.parametrize("name", ["", "with-dash", "Upper", "x" * 17, "../x"])
def test_names_of_stacks(name: str) -> None:
    with pytest.raises(ValueError, match="stack name"):
        Place(name)


def test_addresses_of_pods_are_distinct_and_valid() -> None:
    addresses = {pod_address(number) for number in range(60_000)}
    assert len(addresses) == 60_000
    assert {"10.244.0.0", "10.244.0.1"}.isdisjoint(addresses)
    assert all(socket.inet_aton(address) for address in addresses)
    assert [pod_number(pod_address(number)) for number in (0, 253, 254, 59_999)] == [0, 253, 254, 59_999]


def test_an_ingress_is_marked_once_for_each_generation() -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "observedGeneration": 2}
    assert not ingress_stub.due({"metadata": {"generation": 2}, "status": ready})
    assert ingress_stub.due({"metadata": {"generation": 3}, "status": ready})
    assert ingress_stub.due({"metadata": {"generation": 1}})


def test_another_pin_gives_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "GO", tmp_path)
    module = tmp_path / "etcd"
    module.mkdir()
    family = build.Family("etcd", {"etcd": "example.com/etcd"})
    layout = Layout(tmp_path / "cache")
    (module / "go.mod").write_text("module a\n")
    first = family.folder(layout)
    assert first == family.folder(layout)
    (module / "go.sum").write_text("sum\n")
    assert family.folder(layout) != first
