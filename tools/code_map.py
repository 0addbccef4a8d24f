"""The code map in ARCHITECTURE.md, from each module's own first sentence: `python -m tools.code_map` rewrites it.

A test fails when the map is not current, so a module cannot come, go or change its idea unnoticed.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
PACKAGES = ("kserve_ext", "activator_replacement", "autoscaler_shim", "runtimes")
BEGIN, END = "<!-- code map: python -m tools.code_map -->\n", "<!-- end of code map -->\n"


def first_sentence(path: Path) -> str:
    """Of the module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    sentence, dot, _ = paragraph.partition(". ")
    return sentence + "." if dot else paragraph


def code_map() -> str:
    lines: list[str] = []
    for package in PACKAGES:
        for folder in sorted({p.parent for p in (ROOT / package).rglob("*.py")}):
            modules = sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
            if modules:
                lines += ["", f"**{folder.relative_to(ROOT)}/**", ""]
                lines += [f"- `{p.stem}`: {first_sentence(p)}" for p in modules]
    return "\n".join(lines).lstrip() + "\n"


def rendered(page: str) -> str:
    """The page with a current map."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(
            f"{PAGE.name}: the marks of the code map are missing; put {BEGIN!r} and {END!r} back"
        )
    return before + begin + "\n" + code_map() + "\n" + end + after


def main() -> int:
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
