"""What homes ask: nodes, what they run of a revision; shards, what they use of it (Recall, either way).

All that is asked in one turn of the loop goes together, one message a node and one a shard, so that a function that
takes over thousands of revisions asks each of them once. An answer counts only for the term under which was asked:
whoever answered an older one may since have obeyed another home.
"""

from __future__ import annotations

import asyncio

from activator_replacement.accounts import demand_facts
from activator_replacement.outward import Outward
from kserve_ext.core.dispatch.facts import AskNode
from kserve_ext.core.dispatch.ghosts import same_machine
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.facts import Instance
from kserve_ext.core.ids import FunctionID, NodeID, RevisionKey
from kserve_ext.rpc import RpcError
from kserve_ext.wire import messages as m

TIMEOUT_S = 1.0


class Questions:
    def __init__(self, outward: Outward) -> None:
        self.rpc, self.membership, self.homes, self.carry = outward
        self.loop = asyncio.get_running_loop()
        #: of this turn: revisions with the home that asks; and homes that may have something to ask shards
        self._of_nodes: dict[NodeID, dict[RevisionKey, str]] = {}
        self._of_shards: dict[str, None] = {}
        self._ask_at: asyncio.Handle | None = None
        #: asked and not answered yet: one question at a time
        self._recalling: set[tuple[str, FunctionID]] = set()

    def to_node(self, home_key: str, question: AskNode) -> None:
        self._of_nodes.setdefault(question.node, {})[question.revision] = home_key
        self._ask_soon()

    def to_shards(self, home_key: str) -> None:
        """This home may have shards that have yet to say what they use."""
        self._of_shards[home_key] = None
        self._ask_soon()

    # --- inside

    def _ask_soon(self) -> None:
        if self._ask_at is None:
            self._ask_at = self.loop.call_soon(self._ask)

    def _ask(self) -> None:
        self._ask_at = None
        of_nodes, self._of_nodes = self._of_nodes, {}
        for node, revisions in of_nodes.items():
            asking = {key: home_key for key, home_key in revisions.items() if home_key in self.homes}
            if asking:
                self._ask_node(node, asking)
        of_shards, self._of_shards = self._of_shards, {}
        by_term: dict[tuple[FunctionID, int], dict[str, list[RevisionKey]]] = {}
        for home_key in of_shards:
            home = self.homes.get(home_key)
            if home is None:
                continue
            for shard, keys in home.silent_shards.items():
                if (home_key, shard) not in self._recalling and self.membership.addr_of(shard):
                    by_term.setdefault((shard, home.term), {})[home_key] = keys
        for (shard, term), by_home in by_term.items():
            self._recall_shard(shard, term, by_home)

    def _ask_node(self, node: NodeID, revisions: dict[RevisionKey, str]) -> None:
        terms = {home_key: self.homes[home_key].term for home_key in revisions.values()}
        epoch = max([self.membership.view.epoch, *terms.values()])
        asked_at = self.loop.time()

        def done(reply: m.Message | RpcError) -> None:
            if not isinstance(reply, m.RecallReply):
                return  # home asks again, as long as it matters
            facts: dict[RevisionKey, list[Instance]] = {}
            for instance in reply.instances:
                facts.setdefault(instance.revision, []).append(instance)
            for key, home_key in revisions.items():
                home = self._still(home_key, terms[home_key])
                if home is not None:
                    of_key = facts.get(key, ())
                    self.carry(home_key, home.node_says(key, node, of_key, asked_at, self.loop.time()))

        message = m.Recall(epoch, self.membership.me, self.membership.addr, tuple(revisions))
        self.rpc.call_soon(self.membership.addr_of(node), message, done, TIMEOUT_S)

    def _recall_shard(self, shard: FunctionID, term: int, by_home: dict[str, list[RevisionKey]]) -> None:
        self._recalling.update((home_key, shard) for home_key in by_home)
        addr = self.membership.addr_of(shard)

        def done(reply: m.Message | RpcError) -> None:
            self._recalling.difference_update((home_key, shard) for home_key in by_home)
            ended = isinstance(reply, RpcError) and reply.nobody and same_machine(addr, self.membership.addr)
            if not isinstance(reply, m.RecallReply) and not ended:
                return  # the tick asks again
            said = reply.demands if isinstance(reply, m.RecallReply) else ()
            demands = {d.revision: demand_facts(d) for d in said}
            for home_key, keys in by_home.items():
                home = self._still(home_key, term)
                if home is not None:
                    of_home = [demands[key] for key in keys if key in demands]
                    self.carry(home_key, home.recalled(shard, keys, of_home, self.loop.time()))

        keys = tuple(key for of_home in by_home.values() for key in of_home)
        message = m.Recall(term, self.membership.me, self.membership.addr, keys)
        self.rpc.call_soon(addr, message, done, TIMEOUT_S)

    def _still(self, home_key: str, term: int) -> Home | None:
        """The home, if it is the one that asked."""
        home = self.homes.get(home_key)
        return home if home is not None and home.term == term else None
