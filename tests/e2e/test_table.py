"""The table of behaviours: which files it runs, and how what pytest reports becomes rows."""

from __future__ import annotations

from pathlib import Path

from e2e import table

REPORT = """<testsuites><testsuite>
<testcase name="test_a_thing[stock]" time="1.6"/>
<testcase name="test_a_thing_twice[stock-more]" time="2"><failure message="x"/></testcase>
<testcase name="test_of_ours[stock]" time="0"><skipped message="x"/></testcase>
<testcase name="test_without_any" time="0.1"><error message="x"/></testcase>
</testsuite></testsuites>"""


def test_files_are_chosen_by_words_and_largest_first() -> None:
    sizes = [path.stat().st_size for path in table.files([])]
    assert sizes == sorted(sizes, reverse=True)
    assert {path.stem for path in table.files(["zero", "manif"])} == {"test_zero", "test_manifests"}
    assert table.files(["no such"]) == []


def test_a_report_becomes_rows(tmp_path: Path) -> None:
    (tmp_path / "r.xml").write_text(REPORT)
    stock = table.cases(tmp_path / "r.xml", "file", "stock")
    assert [(case.behaviour, case.outcome) for case in stock] == [
        ("a thing", "passed"),
        ("a thing twice[more]", "failed"),
        ("of ours", "skipped"),
        ("without any", "failed"),
    ]
    ours = table.Case("file", "a thing", "ours", "passed", 3.0)
    lines = table.markdown([stock[0], ours, stock[1]], ["stock", "ours"]).splitlines()
    assert lines == [
        "| | behaviour | stock | ours |",
        "|---|---|---|---|",
        "| file | a thing | passed, 2 s | passed, 3 s |",
        "| file | a thing twice[more] | failed, 2 s |  |",
    ]
