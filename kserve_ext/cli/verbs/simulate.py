"""galaxy simulate: control planes in virtual time."""

from __future__ import annotations

from kserve_ext.cli.simulate.command import simulate

command = simulate
