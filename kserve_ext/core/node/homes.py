"""Whom a node answers to, by revision: which epoch it has obeyed, who the home is, when it is told everything.

Epochs only grow: what is asked under one older than the obeyed one is stale. The home is the one named under
the newest epoch, be it by a Start, by a Recall or by the view; that of the control plane's own functions is the
controller. A revision stays known here until its home has acknowledged that nothing of it is left.

A home is told the whole of a revision again only after it has answered: one that is behind gets no more work from
being behind. Where it doesn't answer, the next time comes twice as late each time, up to the period. Where it has,
and nothing has changed since, so does the one after, up to CALM periods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kserve_ext.core import rendezvous
from kserve_ext.core.control.facts import kind_of
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, RevisionKey

RETRY_TELL_S = 0.2
CALM = 4
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
        #: of these: who is being told and has not answered, and how often in a row it has not
        self._asked: dict[RevisionKey, str] = {}
        self._failed: dict[RevisionKey, int] = {}
        #: after so many periods it is told again what it knows already
        self._calm: dict[RevisionKey, int] = {}
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
                self._failed.pop(key, None)
                self._calm.pop(key, None)

    def follow(self, revision: Revision, due: float) -> None:
        """An instance of it is here: its home is told from now on."""
        self._home_keys[revision.key] = revision.home_key
        self._due[revision.key] = min(due, self._due.get(revision.key, due))

    def follows(self, key: RevisionKey) -> bool:
        return key in self._due

    def forget(self, key: RevisionKey) -> None:
        for of_revision in (self._due, self._home_keys, self._asked, self._failed, self._calm):
            of_revision.pop(key, None)

    def changed(self, key: RevisionKey, now: float) -> None:
        """Something of it is new: the whole of it is told soon."""
        self._calm.pop(key, None)
        if key in self._due:
            self._due[key] = min(self._due[key], now + self.full_s)

    def heard(self, key: RevisionKey, addr: str, now: float) -> None:
        """Home has taken notice of the whole of it."""
        if self._asked.get(key) == addr:
            del self._asked[key]
            self._failed.pop(key, None)
            calm = self._calm.get(key, 1)
            self._due[key] = max(self._due[key], now + calm * self.full_s)
            self._calm[key] = min(CALM, 2 * calm)

    def retry(self, key: RevisionKey, addr: str, now: float, *, full: bool) -> None:
        """It did not hear, or is not the home: again soon, if it still seems to be."""
        if full and self._asked.get(key) == addr:
            del self._asked[key]
        if key in self._due and self.addr(key) == addr:
            failed = self._failed.get(key, 0)
            self._failed[key] = min(failed + 1, 10)
            self._calm.pop(key, None)
            soon = now + min(self.full_s, RETRY_TELL_S * 2**failed)
            self._due[key] = min(self._due[key], soon) if not failed else soon

    def take_due(self, now: float) -> list[tuple[RevisionKey, str]]:
        """The revisions to tell of in full now, and whom; each is answered by heard() or retry()."""
        due: list[tuple[RevisionKey, str]] = []
        for key, at in self._due.items():
            if now >= at and (addr := self.addr(key)) and self._asked.get(key) != addr:
                due.append((key, addr))
                self._asked[key] = addr
        for key, _ in due:
            self._due[key] = now + self.full_s
        return due
