"""The model cache: one copy for all, complete or not there, bounded, and clear about what can't be served."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from autoscaler_shim.node import model_files
from autoscaler_shim.node.models import Copy, ModelCache, victims
from kserve_ext.core.facts import Model
from kserve_ext.fluid.preload import ModelUnavailable, ModelUnusable, Near, Progress
from tests.support.node_world import FAKE, World, get, pack, revision, run

GIB = 1 << 30


def model_folder(folder: Path, payload: int = 1000) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    head = json.dumps({"w": {"dtype": "U8", "shape": [payload], "data_offsets": [0, payload]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"w" * payload)
    (folder / "sub").mkdir()
    (folder / "sub/tokens.txt").write_text("t")
    return folder


def model(folder: Path) -> Model:
    return Model(f"file://{folder}", str(folder))


def ignore(progress: Progress) -> None:
    pass


def fetch(cache: ModelCache, *models: Model) -> list[Near]:
    async def all_at_once() -> list[Near]:
        return await asyncio.gather(*(cache.fetch(m, ignore) for m in models))

    return asyncio.run(all_at_once())


def test_one_copy_for_all_who_ask_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = model(model_folder(tmp_path / "m"))
    cache = ModelCache(tmp_path / "cache", GIB)
    copies = []
    copy = cache._copy

    def counted(*args: Any) -> bool:
        copies.append(args)
        return copy(*args)

    monkeypatch.setattr(cache, "_copy", counted)
    nears = fetch(cache, *[source] * 8)
    assert len(copies) == 1
    assert len({near.folder for near in nears}) == 1
    [again] = fetch(cache, source)
    assert (again.how, again.folder, len(copies)) == ("cached", nears[0].folder, 1)
    assert (again.folder / "sub/tokens.txt").read_text() == "t"
    assert cache.held() == (source.key,)
    assert not cache.under_way()


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    source = model(model_folder(tmp_path / "m", 3_000_000))
    cache = ModelCache(tmp_path / "cache", GIB)
    seen: list[Progress] = []

    async def story() -> None:
        await cache.fetch(source, seen.append)

    asyncio.run(story())
    assert seen[-1].done == seen[-1].total > 3_000_000
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_a_model_changed_in_place_is_copied_anew_and_the_old_copy_stays_as_it_was(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    cache = ModelCache(tmp_path / "cache", GIB)
    [first] = fetch(cache, model(folder))
    (folder / "sub/tokens.txt").write_text("changed")
    [second] = fetch(cache, model(folder))
    assert second.folder != first.folder
    assert (first.folder / "sub/tokens.txt").read_text() == "t"
    assert (second.folder / "sub/tokens.txt").read_text() == "changed"


def test_the_next_agent_finds_complete_copies_and_removes_the_rest(tmp_path: Path) -> None:
    source = model(model_folder(tmp_path / "m"))
    [near] = fetch(ModelCache(tmp_path / "cache", GIB), source)
    (tmp_path / "cache/.half.partial").mkdir()
    (tmp_path / "cache/unknown").mkdir()
    cache = ModelCache(tmp_path / "cache", GIB)
    assert cache.held() == (source.key,)
    assert sorted(p.name for p in cache.folder.iterdir()) == sorted(
        [near.folder.name, f"{near.folder.name}.json"]
    )
    assert fetch(cache, source)[0].how == "cached"


def test_a_source_that_is_away_is_served_from_the_cache_and_says_so(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    cache = ModelCache(tmp_path / "cache", GIB)
    [near] = fetch(cache, model(folder))
    folder.rename(tmp_path / "elsewhere")
    [again] = fetch(cache, model(folder))
    assert again.folder == near.folder
    assert "its source is away" in again.how


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 500)


def no_head(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def bad_head(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b"notjson!" + b"x" * 8)


def empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (break_config, "config.json is not JSON"),
        (truncate, "its head says"),
        (no_head, "is cut off or not a safetensors file"),
        (bad_head, "unreadable safetensors head"),
        (empty, "is empty: put the model there"),
    ],
)
def test_a_broken_model_is_refused_for_good_with_its_path(tmp_path: Path, spoil: object, what: str) -> None:
    folder = model_folder(tmp_path / "m")
    assert callable(spoil)
    spoil(folder)
    cache = ModelCache(tmp_path / "cache", GIB)
    with pytest.raises(ModelUnusable, match=what) as error:
        fetch(cache, model(folder))
    assert str(folder) in str(error.value)
    assert not cache.held()
    assert not list(cache.folder.iterdir())


def test_what_has_no_config_is_no_transformer(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").unlink()
    files = model_files.manifest(folder)
    model_files.check(folder, files)
    with pytest.raises(ModelUnusable, match=r"has no config\.json"):
        model_files.check(folder, files, transformer=True)


def test_unused_for_longest_goes_and_what_is_used_stays(tmp_path: Path) -> None:
    a, b, c, d = (model(model_folder(tmp_path / name)) for name in "abcd")
    size = sum(f.size for f in model_files.manifest(tmp_path / "a"))
    cache = ModelCache(tmp_path / "cache", 2 * size)
    [near] = fetch(cache, a)
    cache.keep("instance", near.folder)
    fetch(cache, b)
    fetch(cache, c)
    assert cache.held() == (a.key, c.key)
    cache.keep("other", fetch(cache, c)[0].folder)
    with pytest.raises(ModelUnavailable, match="raise the bound"):
        fetch(cache, d)
    cache.let_go("instance")
    fetch(cache, d)
    assert cache.held() == (c.key, d.key)


def test_victims_are_none_when_it_would_not_help() -> None:
    copies = {n: Copy(n, n, (), 10, at) for n, at in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    assert victims(copies, set(), 10, 30) == ["a"]
    assert victims(copies, {"a"}, 10, 30) == ["b"]
    assert victims(copies, {"a", "b", "c"}, 10, 30) == []
    assert victims(copies, set(), 40, 30) == []
    assert victims(copies, set(), 0, 30) == []


def test_an_instance_reads_the_copy_and_two_services_share_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")

    async def story(world: World) -> None:
        await world.up()
        await asyncio.gather(*(world.start(f"i{k}", revision(name=f"r{k}", model=folder)) for k in range(3)))
        folders = set()
        for k in range(3):
            ready = await world.state(f"i{k}", "ready")
            page = await get(ready.addr)
            [option] = [a for a in page["argv"] if a.startswith("--model=")]
            folders.add(option)
            assert "config.json" in page["model"]
        assert len(folders) == 1
        assert "nodes/node-0/models/m-" in folders.pop()
        assert world.status is not None
        assert world.status.models == (f"file://{folder}",)

    run(story, tmp_path)


def test_a_missing_model_fails_the_start_for_good_and_a_preload_comes_ahead(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")

    async def story(world: World) -> None:
        ahead = revision(name="ahead", model=folder)
        ahead = ahead._replace(model=ahead.model._replace(preload="node"))
        world.revisions["revisions/default/ahead"] = pack(ahead)
        await world.up()
        await world.until(lambda: world.status and world.status.models == (f"file://{folder}",))
        await world.until(lambda: world.status and world.status.slots == ((FAKE, 1),))
        await world.start("x", revision(model=tmp_path / "nowhere"))
        failed = await world.state("x", "failed")
        assert failed.permanent
        assert failed.reason.startswith(f"model: model folder {tmp_path}/nowhere does not exist")
        await world.until(lambda: world.status and world.status.free.cpu_milli == 4000)

    run(story, tmp_path)
