"""The URL of a store: what is taken, what is refused, and that nobody is shown the password."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kserve_ext.rpc.ports import free_port
from kserve_ext.store import Unavailable
from kserve_ext.store.location import Location
from kserve_ext.store.redis import RedisStore
from tests.support.certificates import Authority
from tests.support.redis_server import RedisServer

KEY = b"k" * 32


def test_clusters_on_one_server_do_not_meet() -> None:
    one, other = Location.of("redis://host/0", KEY), Location.of("redis://host/0", b"o" * 32)
    assert one.namespace != other.namespace
    named = Location.of("rediss://host/0?namespace=mine&ssl_cert_reqs=none", KEY)
    assert named == ("rediss://host/0?ssl_cert_reqs=none", "mine")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("etcd://host", "a store is redis://"),
        ("redis://", "names no host"),
        ("unix:", "names no socket"),
        ("redis://host:port", "port"),
        ("redis://host/name", "number of the database"),
        ("redis://host:99999/0", "'redis://host:99999/0': the port is no number up to 65535"),
        ("redis://:pass:word/0@host/0", "'redis://host/0' names no host: .* %2F"),
        ("redis://:pass#word@host/0", "write %23"),
        ("redis://host?namespace={a}", "braces"),
        ("redis://host?namespace=a*", "braces"),
    ],
)
def test_what_is_no_store_is_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Location.of(url, KEY)


@pytest.mark.parametrize(
    "url", ["u:s3cret@host", "redis://:s/3cret@host", "redis://:s#3cret@host", "foo://:s3cret@h"]
)
def test_what_is_no_store_is_refused_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"a store is|%2F|%23") as caught:
        Location.of(url, KEY)
    assert "3cret" not in str(caught.value)


def test_parameters_that_the_client_does_not_take_are_named() -> None:
    with pytest.raises(ValueError, match=r"'redis://host/0': its parameters are not redis-py's: .*'foo'"):
        RedisStore(Location.of("redis://host/0?foo=bar", KEY))
    with pytest.raises(ValueError, match=r"'rediss://host/0': its parameters .*maybe"):
        RedisStore(Location.of("rediss://host/0?ssl_cert_reqs=maybe", KEY))
    with pytest.raises(ValueError, match="socket_timeout"):
        RedisStore(Location.of("redis://host/0?socket_timeout=soon", KEY))


def test_who_may_not_come_in_is_told_what_to_do_and_nobody_sees_the_password(tmp_path: Path) -> None:
    async def write(url: str) -> int:
        store = RedisStore(Location.of(url, KEY))
        try:
            return await store.put_now([("a/1", b"x")])
        finally:
            await store.close()

    with RedisServer(tmp_path, "--requirepass", "s3cret") as server:
        host = f"127.0.0.1:{server.port}"
        for url, why, do in [
            (f"redis://:s3cret@{host}/99", "DB index is out of range", "name a database"),
            (f"redis://{host}/0", "Authentication required", "correct user and password"),
            (f"redis://:wr0ng@{host}/0", "WRONGPASS|invalid username-password", "correct user and password"),
        ]:
            with pytest.raises(Unavailable, match=why) as caught:
                asyncio.run(write(url))
            assert f"redis://{host}/" in str(caught.value)
            assert do in str(caught.value)
            assert "wr0ng" not in str(caught.value)
        assert asyncio.run(write(f"redis://:s3cret@{host}/0"))
        assert "s3cret" not in str(Location.of(f"redis://u:s3cret@{host}/0", KEY))


def test_a_user_with_the_rights_that_the_remedy_names_is_enough(tmp_path: Path) -> None:
    async def story(url: str) -> None:
        store = RedisStore(Location.of(url, KEY))
        there, changed = asyncio.Event(), asyncio.Event()
        try:
            store.watch("a/", lambda items: there.set(), lambda key, value: changed.set())
            await store.scan("a/")
            await there.wait()
            await store.put_now([("a/1", b"x")], expect=[("a/1", 0)])
            await changed.wait()
        finally:
            await store.close()

    rights = (
        "--user",
        "galaxy",
        "on",
        ">pw",
        "+@read",
        "+@write",
        "+@scripting",
        "+@connection",
        "~{mine}:*",
    )
    with RedisServer(tmp_path, *rights) as server:
        host = f"127.0.0.1:{server.port}"
        asyncio.run(story(f"redis://galaxy:pw@{host}/0?namespace=mine"))
        with pytest.raises(Unavailable, match=r"permissions .* ~\{other\}:\*"):
            asyncio.run(story(f"redis://galaxy:pw@{host}/0?namespace=other"))


def test_over_tls_only_a_server_that_the_authority_vouches_for(tmp_path: Path) -> None:
    authority = Authority()
    authority.server(tmp_path, "store.example")
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "other.crt").write_bytes(Authority("other").pem)

    async def write(url: str) -> int:
        store = RedisStore(Location.of(url, KEY))
        try:
            return await store.put_now([("a/1", b"x")])
        finally:
            await store.close()

    port = free_port()
    files = {"cert": "tls.crt", "key": "tls.key", "ca-cert": "ca.crt"}
    tls = [word for name, file in files.items() for word in (f"--tls-{name}-file", str(tmp_path / file))]
    with RedisServer(tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no", *tls):
        host = f"rediss://127.0.0.1:{port}/0"
        assert asyncio.run(write(f"{host}?ssl_ca_certs={tmp_path}/ca.crt"))
        with pytest.raises(Unavailable, match="certificate verify failed"):
            asyncio.run(write(f"{host}?ssl_ca_certs={tmp_path}/other.crt"))


def test_a_node_of_a_cluster_is_refused_with_what_to_name_instead(tmp_path: Path) -> None:
    async def ask(server: RedisServer) -> str:
        store = RedisStore(Location.of(server.url, KEY))
        try:
            with pytest.raises(Unavailable) as refused:
                await store.scan("a/")
            return str(refused.value)
        finally:
            await store.close()

    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with RedisServer(tmp_path, *options) as server:
        assert "name a server by itself" in asyncio.run(ask(server))
