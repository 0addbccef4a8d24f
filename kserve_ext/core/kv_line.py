"""A line through what was measured, y = start + slope * x: least squares in which older samples count less. Pure."""

from __future__ import annotations

from typing import Final

#: Least variance of x, relative to its mean squared, for a slope to mean anything.
_SPREAD: Final = 0.01


class Line:
    """Sums over samples, of which each counts by 1 / scale²: its error is relative to `scale`."""

    __slots__ = ("_n", "_x", "_xx", "_xy", "_y", "count")

    def __init__(self) -> None:
        self.count = 0.0  # samples, by what they count for now
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, x: float, y: float, scale: float, share: float = 1.0) -> None:
        """`share`: of a whole sample, what this one is worth."""
        weight = share / (scale * scale)
        self.count += share
        self._n += weight
        self._x += weight * x
        self._y += weight * y
        self._xx += weight * x * x
        self._xy += weight * x * y

    def fade(self, factor: float) -> None:
        """What was added so far counts for less."""
        self.count *= factor
        self._n *= factor
        self._x *= factor
        self._y *= factor
        self._xx *= factor
        self._xy *= factor

    def fit(self) -> tuple[float, float] | None:
        """(start, slope); None where all samples have about the same x."""
        if not self._n:
            return None
        mean = self._x / self._n
        variance = self._xx / self._n - mean * mean
        if variance <= _SPREAD * mean * mean:
            return None
        slope = (self._xy / self._n - mean * self._y / self._n) / variance
        return self._y / self._n - slope * mean, slope

    def through_zero(self) -> float:
        """The slope of the line that starts at zero."""
        return self._xy / self._xx
