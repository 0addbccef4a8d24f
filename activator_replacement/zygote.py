"""Forks Dispatch functions in milliseconds: `python -m activator_replacement.zygote --socket PATH --name NAME`.

All functions of one machine share the public port, so that a new one gets its share of the connections to come.
"""

from __future__ import annotations

# The import of __main__ chooses the form of the request path and brings all of it.
from activator_replacement.__main__ import main
from kserve_ext.rpc import zygote

if __name__ == "__main__":
    args = zygote.command_line("activator_replacement").parse_args()
    zygote.serve(args, zygote.Program("activator_replacement", lambda: None, main))
