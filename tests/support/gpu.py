"""A GPU that engines of a stand-in have memory of, in a folder, and a library that tells of it as NVIDIA's does.

`total` has its MiB; a file that is called like a process's pid has what that process holds. What a process held is
free when it has ended, however it did.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

_SOURCE: Final = r"""
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
static long long number(const char *name) {
  char path[4096]; long long found = 0;
  snprintf(path, sizeof path, "%s/%s", getenv("STAND_IN_GPU"), name);
  FILE *file = fopen(path, "r");
  if (file) { if (fscanf(file, "%lld", &found) != 1) found = 0; fclose(file); }
  return found;
}
int nvmlInit_v2(void) { return getenv("STAND_IN_GPU") ? 0 : 9; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("count") ? number("count") : 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *then) { *now = *then = number("mig"); return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory *said) {
  unsigned long long used = 0;
  if (said->version != (sizeof *said | 2 << 24) || !handle) return 25;
  DIR *folder = opendir(getenv("STAND_IN_GPU"));
  for (struct dirent *entry; folder && (entry = readdir(folder));) {
    char path[64], state = 'Z'; int pid = atoi(entry->d_name);
    if (!pid) continue;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (file) { if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1) state = 'Z'; fclose(file); }
    if (state != 'Z') used += number(entry->d_name);
  }
  if (folder) closedir(folder);
  said->total = (number("total") + 3) << 20; said->reserved = 3 << 20;
  said->used = used << 20; said->free = said->total - said->reserved - said->used;
  return 0;
}
"""


def library(folder: Path) -> Path:
    """Compiled there."""
    source, made = folder / "nvml.c", folder / "nvml.so"
    source.write_text(_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, source], check=True)
    return made


class Gpu:
    """As an engine has it; without a folder there is none."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None

    def hold(self, mib: int) -> None:
        """So much from now on. Raises MemoryError where that isn't free."""
        if self._folder is None:
            return
        if mib - self._held(os.getpid()) > self.free_mib:
            raise MemoryError("CUDA Error: out of memory at cumem_allocator.cpp:62")
        own = self._folder / str(os.getpid())
        new = self._folder / f"new-{own.name}"
        new.write_text(str(mib))
        new.replace(own)

    @property
    def total_mib(self) -> int:
        return int((self._folder / "total").read_text()) if self._folder is not None else 0

    @property
    def free_mib(self) -> int:
        if self._folder is None:
            return 0
        pids = [int(file.name) for file in self._folder.iterdir() if file.name.isdecimal()]
        return self.total_mib - sum(self._held(pid) for pid in pids if Path(f"/proc/{pid}").exists())

    def _held(self, pid: int) -> int:
        assert self._folder is not None
        try:
            return int((self._folder / str(pid)).read_text())
        except FileNotFoundError:
            return 0
