"""Whom a node answers to, by revision: which epoch it has obeyed, who the home is, when it is told everything.

Epochs only grow: what is asked under one older than the obeyed one is stale. The home is the one named under
the newest epoch, be it by a Start, by a Recall or by the view; that of the control plane's own functions is the
controller. A revision stays known here until its home has acknowledged that nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kserve_ext.core import rendezvous
from kserve_ext.core.control.facts import kind_of
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, RevisionKey

RETRY_TELL_S = 0.2
KEEP_EPOCHS = 10_000


class _Named(NamedTuple):
    epoch: int
    addr: str


class Homes:
    def __init__(self, full_s: float) -> None:
        self.full_s = full_s
        self.view_epoch = 0
        self.controller = ""  # its rpc address
        self._dispatch: Mapping[FunctionID, str] = {}
        self._owners = rendezvous.Owners[FunctionID]()
        #: an epoch that is obeyed for every revision (what was obeyed before a restart is not newer)
        self._floor = 0
        #: the newest epoch obeyed, and the home it named
        self._named: dict[RevisionKey, _Named] = {}
        #: revisions that home is told of in full, and when next; with what their home is chosen by
        self._due: dict[RevisionKey, float] = {}
        self._home_keys: dict[RevisionKey, str] = {}

    def obeyed(self, key: RevisionKey) -> int:
        named = self._named.get(key)
        return max(self._floor, named.epoch if named else 0)

    def obey(self, key: RevisionKey, epoch: int, addr: str) -> None:
        """From now on nothing older than `epoch` is done for `key`. The caller has checked that it isn't older."""
        assert epoch >= self.obeyed(key), f"{key}: {epoch} after {self.obeyed(key)}"
        if len(self._named) >= KEEP_EPOCHS and key not in self._named:
            self._floor = max(self._floor, min(epoch, self.view_epoch))
            self._named = {k: n for k, n in self._named.items() if n.epoch > self._floor}
        self._named[key] = _Named(epoch, addr)

    def epoch(self, key: RevisionKey) -> int:
        """The newest epoch known here, for what is told of `key`."""
        return max(self.view_epoch, self.obeyed(key))

    def addr(self, key: RevisionKey) -> str:
        """The home's rpc address, "" when none is known."""
        if self.controller and kind_of(key):
            return self.controller
        named = self._named.get(key)
        if named is not None and named.addr and named.epoch > self.view_epoch:
            return named.addr
        owner = self._owners.of(self._home_keys.get(key, key))
        return self._dispatch[owner] if owner else (named.addr if named else "")

    def view(self, epoch: int, dispatch: Mapping[FunctionID, str], now: float) -> None:
        """The Dispatch functions (id, rpc address) of a view. A home that is new is told everything at once."""
        if epoch < self.view_epoch:
            return
        if self.view_epoch == 0:
            self._floor = epoch
        before = {key: self.addr(key) for key in self._due}
        self.view_epoch, self._dispatch = epoch, dict(dispatch)
        self._owners.change(dispatch)
        for key, addr in before.items():
            if self.addr(key) != addr:
                self._due[key] = now

    def follow(self, revision: Revision, due: float) -> None:
        """An instance of it is here: its home is told from now on."""
        self._home_keys[revision.key] = revision.home_key
        self._due[revision.key] = min(due, self._due.get(revision.key, due))

    def follows(self, key: RevisionKey) -> bool:
        return key in self._due

    def forget(self, key: RevisionKey) -> None:
        self._due.pop(key, None)
        self._home_keys.pop(key, None)

    def retry(self, key: RevisionKey, now: float) -> None:
        """Home did not hear: again soon."""
        if key in self._due:
            self._due[key] = min(self._due[key], now + RETRY_TELL_S)

    def take_due(self, now: float) -> list[RevisionKey]:
        """The revisions to tell of in full now; each is due again after the period."""
        due = [key for key, at in self._due.items() if now >= at]
        for key in due:
            self._due[key] = now + self.full_s
        return due
