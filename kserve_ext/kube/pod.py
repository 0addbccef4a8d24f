"""What a part of ours finds in its pod and does there as Knative's own parts do: domain, log lines, open files."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from pathlib import Path


def cluster_domain(resolv_conf: Path) -> str:
    """From the search entry that the kubelet writes, svc.DOMAIN; else cluster.local."""
    try:
        lines = resolv_conf.read_text().splitlines()
    except OSError:
        return "cluster.local"
    for line in lines:
        words = line.split()
        if words[:1] == ["search"]:
            for word in words[1:]:
                if word.startswith("svc."):
                    return word.removeprefix("svc.").rstrip(".")
    return "cluster.local"


class JsonLines(logging.Formatter):
    """One object a line, with the fields that Knative's own parts write."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "severity": record.levelname,
            "timestamp": f"{seconds}.{int(record.msecs):03d}Z",
            "logger": f"{self._part}.{record.name}",
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stdout(part: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(part))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def raise_open_files() -> None:
    """To what the container may have, as Go's runtime does by itself; the default is that of select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
