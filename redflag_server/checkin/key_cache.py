"""
Keys of agents that were here lately, so that a signature can be verified without asking the database.

There is nothing to invalidate: keys and organization of a record never change, and an agent with another key is
another record. Whether the agent may still do anything is no part of it; the gate asks the database each time.
"""

from collections import OrderedDict
from typing import Final
from uuid import UUID

import attrs

MAX_KEYS: Final = 131_072
"""Agents remembered: some 400 bytes each. Of a larger fleet the rest costs one query more."""


@attrs.frozen
class AgentKeys:
    """
    Who has a key.

    Attributes:
        agent_id: The agent.
        organization_id: Its organization.
        public_key: Its key, 32 bytes.
        executor_key: Key of its executor, 32 bytes.
    """

    agent_id: UUID
    organization_id: UUID
    public_key: bytes
    executor_key: bytes


@attrs.define(eq=False)
class KeyCache:
    """
    Remembers the keys that were used last. Belongs to one event loop.

    Args:
        limit: Keys remembered.
    """

    limit: int = MAX_KEYS
    _keys: OrderedDict[str, AgentKeys] = attrs.field(factory=OrderedDict, init=False)

    def get(self, key_id: str) -> AgentKeys | None:
        """Who has this key, if that is remembered."""
        found = self._keys.get(key_id)
        if found is not None:
            self._keys.move_to_end(key_id)
        return found

    def put(self, key_id: str, keys: AgentKeys) -> None:
        """Remember who has a key; what was not used for longest is forgotten."""
        self._keys[key_id] = keys
        if len(self._keys) > self.limit:
            self._keys.popitem(last=False)
