"""How long an order to a node's agent is waited for: an agent that is busy is not one that is silent.

In a burst one agent has hundreds of orders while its machine starts what was ordered before. As long as it says
anything at all, it will come to the others; whoever asked elsewhere instead would make the machine busier still.
"""

from __future__ import annotations

from typing import Final

#: Without any word of the agent.
SILENT_S: Final = 2.0
#: Whatever it says meanwhile.
MOST_S: Final = 10.0


class Patience:
    def __init__(self) -> None:
        self._words: dict[str, float] = {}  # by node: when its agent was heard last

    def heard(self, node: str, now: float) -> None:
        """News, or the answer to any order."""
        self._words[node] = now

    def forget(self, node: str) -> None:
        self._words.pop(node, None)

    def left_s(self, node: str, ordered: float, now: float) -> float:
        """How much longer an order of that time is waited for; 0 = no more."""
        last = max(ordered, self._words.get(node, ordered))
        return max(0.0, min(last + SILENT_S, ordered + MOST_S) - now)

    def silent(self, node: str, now: float) -> bool:
        """It has said nothing for so long that nothing new is ordered."""
        return now >= self._words.get(node, float("-inf")) + SILENT_S
