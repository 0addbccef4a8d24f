"""Kubernetes resource quantities: "500m", "2Gi", "1e3", 4.

Exact arithmetic: a quantity is a Fraction until it is rounded up to the unit that the ledger counts in, as the
scheduler of Kubernetes rounds. Matches apimachinery's pkg/api/resource (suffixes, exponents, signs).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_BINARY: Final = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4, "Pi": 1024**5, "Ei": 1024**6}
_DECIMAL: Final = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
_FORM: Final = re.compile(
    r"(?P<number>[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30}))(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][+-]?\d{1,2})?"
)
FORMS: Final = "write a number with a suffix such as 500m, 2, 64Mi, 2Gi, 1e3"


def parse(value: object) -> Fraction:
    """The exact amount; ValueError says what is wrong. YAML turns `2` and `0.5` into numbers: both are accepted."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a quantity; {FORMS}")
    text = str(value)
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a quantity; {FORMS}")
    number = Fraction(found["number"].rstrip(".") or "0")
    suffix = found["suffix"] or ""
    if suffix in _BINARY:
        return number * _BINARY[suffix]
    if suffix in _DECIMAL:
        return number * _DECIMAL[suffix]
    return number * Fraction(10) ** int(suffix[1:])


def up(amount: Fraction, unit: Fraction | int = 1) -> int:
    """How many whole units cover the amount."""
    return int(-((-amount / unit) // 1))


def milli(value: object) -> int:
    """CPU in thousandths, rounded up."""
    return up(parse(value), Fraction(1, 1000))


def mebibytes(value: object) -> int:
    """Memory in MiB, rounded up."""
    return up(parse(value), 1024**2)


def whole(value: object) -> int:
    """A count of devices or bytes, rounded up."""
    return up(parse(value))


def show_milli(cpu_milli: int) -> str:
    return str(cpu_milli // 1000) if cpu_milli % 1000 == 0 else f"{cpu_milli}m"


def show_mebibytes(mib: int) -> str:
    return f"{mib // 1024}Gi" if mib and mib % 1024 == 0 else f"{mib}Mi"
