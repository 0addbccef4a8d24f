"""Where a storageUri is on this machine: pvc://claim/path and file:///path, for the embedded cluster.

A claim is a folder: one that `galaxy up --pvc claim=/folder` named, else pvc/CLAIM in the cluster's data folder.
Other schemes that KServe knows need a downloader, which the embedded cluster does not have; the problem says so.
Decides the path only: whether something is there is looked at by the objects process and the node agent.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from kserve_ext.api.problems import Findings, did_you_mean

#: Schemes of KServe's storage initializer that would have to be downloaded.
REMOTE: Final = (
    "gs",
    "s3",
    "http",
    "https",
    "hdfs",
    "webhdfs",
    "oci",
    "oci+native",
    "oci+fetch",
    "hf",
    "modelscope",
    "abfs",
    "azure",
)


@dataclass(frozen=True, slots=True)
class Claims:
    """Folders of persistent volume claims."""

    root: str  # claims that were not mapped are folders below it
    mapped: Mapping[str, str]

    def folder(self, claim: str) -> str:
        return self.mapped.get(claim) or posixpath.join(self.root, claim)

    def unmapped(self, uri: str) -> str:
        """The claim of this URI, when nobody has named a folder for it; "" otherwise."""
        parts = urlsplit(uri)
        return parts.netloc if parts.scheme == "pvc" and parts.netloc not in self.mapped else ""


def local_path(uri: str, claims: Claims, field: str, findings: Findings) -> str:
    """The folder that the URI stands for, "" when there is a problem."""
    parts = urlsplit(uri)
    scheme = parts.scheme
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            findings.problem(field, "not an absolute path", "write file:///absolute/folder", uri)
            return ""
        return posixpath.normpath(unquote(parts.path))
    if scheme == "pvc":
        claim, path = parts.netloc, unquote(parts.path).lstrip("/")
        if not claim:
            findings.problem(field, "names no claim", "write pvc://CLAIM/path/in/it", uri)
            return ""
        folder = claims.folder(claim)
        full = posixpath.normpath(posixpath.join(folder, path)) if path else folder
        if full != folder and not full.startswith(folder.rstrip("/") + "/"):
            findings.problem(field, "leads out of the claim", "remove .. from the path", uri)
            return ""
        return full
    if not scheme:
        findings.problem(field, "has no scheme", "write pvc://CLAIM/path or file:///absolute/folder", uri)
    elif scheme in REMOTE:
        findings.problem(
            field,
            f"scheme {scheme}:// needs a downloader, and the embedded cluster has none",
            "put the model in a folder and use pvc://CLAIM/path or file:///absolute/folder",
            uri,
        )
    else:
        findings.problem(
            field, f"unknown scheme {scheme}://", did_you_mean(scheme, ["pvc", "file", *REMOTE]), uri
        )
    return ""
