"""system-internal-tls: TLS from the ingress to the activator and from there to the pods, and certificates renewed."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from e2e.behaviours import http2, services
from e2e.behaviours.client import INTERNAL_NAME, TLS_PORT, Client
from e2e.behaviours.parts import processes, restart, system_pods
from e2e.behaviours.services import NAMESPACE, Service, deployed, template
from e2e.stack.api import Api, wait_until
from e2e.stack.certificate_stub import secret_data
from e2e.stack.certificates import Authority
from e2e.stack.place import SYSTEM_NAMESPACE

ASLEEP = {"target-burst-capacity": "-1", **services.ASLEEP}
ROUTING = (SYSTEM_NAMESPACE, "routing-serving-certs")
SERVING = (NAMESPACE, "serving-certs")
POD_NAME = f"kn-user-{NAMESPACE}"
#: Knative's Certificates ask for it, too, and its activator looks at no other.
FORMER_NAME = "data-plane.knative.dev"
_ESTABLISHED = "01"


@contextmanager
def encrypted(api: Api) -> Iterator[ssl.SSLContext]:
    """Switched on, as far as the activator; what an ingress knows of it."""
    where = ("v1", "ConfigMap", SYSTEM_NAMESPACE, "config-network")
    api.patch(*where, {"data": {"system-internal-tls": "Enabled"}})
    restart(api, "activator")
    try:
        yield trusting(data(api, *ROUTING))
    finally:
        api.patch(*where, {"data": {"system-internal-tls": None}})
        restart(api, "activator")


def trusting(secret: Mapping[str, str]) -> ssl.SSLContext:
    """Whoever has signed what is in the Secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=base64.b64decode(secret["ca.crt"]).decode())
    return context


def data(api: Api, namespace: str, name: str) -> dict[str, str]:
    found: dict[str, str] = api.get("v1", "Secret", namespace, name)["data"]
    return found


@contextmanager
def kept(api: Api, *secrets: tuple[str, str]) -> Iterator[None]:
    """They have in the end what they had before."""
    before = {where: data(api, *where) for where in secrets}
    try:
        yield
    finally:
        for where, content in before.items():
            api.patch("v1", "Secret", *where, {"data": content})


@contextmanager
def trust_bundle(api: Api, authority: Authority) -> Iterator[None]:
    labels = {"networking.knative.dev/trust-bundle": "true"}
    metadata = {"namespace": SYSTEM_NAMESPACE, "name": "renewed", "labels": labels}
    content = {"ca.crt": authority.certificate.decode()}
    api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": content})
    try:
        yield
    finally:
        api.delete("v1", "ConfigMap", SYSTEM_NAMESPACE, "renewed")


def shows(address: str, name: str, known: ssl.SSLContext) -> bool:
    """Whether a certificate is shown there with this name, of an authority that is known."""
    try:
        with socket.create_connection((address, TLS_PORT), timeout=5) as plain:
            known.wrap_socket(plain, server_hostname=name).close()
    except ssl.SSLError:
        return False
    return True


def connections(api: Api, service: Service) -> int:
    """That others have to the TLS port of the service's pods."""
    count = 0
    for pod in service.ready_pods():
        pid = processes(api, NAMESPACE, pod["metadata"]["name"])[0]
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                count += (local.rpartition(":")[2], state) == (f"{TLS_PORT:04X}", _ESTABLISHED)
    return count


def test_requests_are_encrypted_all_the_way(api: Api, client: Client) -> None:
    """HTTP/1.1 and HTTP/2, from zero."""
    with (
        encrypted(api) as known,
        deployed(api, "tls", template(ASLEEP)) as service,
        deployed(api, "tls", template(ASLEEP, http2=True)) as second,
    ):
        with client.load(service, 4, "/?sleep=20", tls=known) as load:
            load.wait_good(50)
            wait_until("an encrypted one", lambda: connections(api, service) > 0, 30)
            with http2.Connection(client.backend(second), trusting(data(api, *ROUTING))) as connection:
                stream = connection.request("GET", "/?sleep=3000")
                wait_until("an encrypted one", lambda: connections(api, second) > 0, 60)
                connection.wait("the answer", lambda: stream in connection.ended, 60)
                assert connection.status == {stream: 200}
        assert not load.failures


def test_renewed_certificates_are_taken_up_and_fail_no_request(api: Api, client: Client) -> None:
    """Of another authority, which a bundle makes known first. A queue-proxy looks once a minute."""
    renewed = Authority("renewed")
    for_pods = secret_data(renewed, [POD_NAME, FORMER_NAME])
    for_ingresses = secret_data(renewed, [INTERNAL_NAME, FORMER_NAME])
    only_new = trusting(for_pods)
    with (
        encrypted(api) as known,
        deployed(api, "renew", template({"target-burst-capacity": "-1", "min-scale": "1"})) as service,
        kept(api, ROUTING, SERVING),
        trust_bundle(api, renewed),
    ):
        known.load_verify_locations(cadata=renewed.certificate.decode())
        with client.load(service, 2, "/?sleep=20", tls=known) as load:
            load.wait_good(20)
            api.patch("v1", "Secret", *SERVING, {"data": for_pods})
            (pod,) = service.ready_pods()
            address = pod["status"]["podIP"]
            wait_until("the pod's new certificate", lambda: shows(address, POD_NAME, only_new), 90, 1)
            with client.load(service, 8, "/?sleep=20", tls=known) as more:  # over further connections
                more.wait_good(50)
            api.patch("v1", "Secret", *ROUTING, {"data": for_ingresses})
            (name,) = system_pods(api, "activator")
            address = api.get("v1", "Pod", SYSTEM_NAMESPACE, name)["status"]["podIP"]
            wait_until("the activator's", lambda: shows(address, INTERNAL_NAME, only_new), 30)
            with client.load(service, 4, "/?sleep=20", tls=only_new) as last:
                last.wait_good(20)
        assert [load.failures, more.failures, last.failures] == [[], [], []]


def test_a_pod_whose_certificate_nobody_vouches_for_gets_no_request(api: Api, client: Client) -> None:
    with (
        encrypted(api),
        deployed(api, "stranger", template(ASLEEP)) as service,
        kept(api, SERVING),
    ):
        stranger = secret_data(Authority("stranger"), [POD_NAME, FORMER_NAME])
        api.patch("v1", "Secret", *SERVING, {"data": stranger})
        assert client.send(service).status == 502
