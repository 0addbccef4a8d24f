"""The invariants of DESIGN 4, one module each: `check(digest)` yields a Violation for each time it was broken."""
