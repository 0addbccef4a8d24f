"""Set-up of a development machine: engines, tools and the tiny model, kept in one cache folder that clones share.

`python3.11 -m tools.setup` needs nothing but the standard library; `make` calls it before everything else.
"""
