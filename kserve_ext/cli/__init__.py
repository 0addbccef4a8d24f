"""The command `galaxy`: the embedded cluster and the operator's tools."""
