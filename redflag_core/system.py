"""The real clock and the real entropy. Shells pass these in; nothing in the core creates them by itself."""

import os
import time
from datetime import UTC, datetime

import attrs


@attrs.frozen
class SystemClock:
    """`redflag_core.ports.Clock` of the operating system. Stateless: share it freely, also over a fork."""

    def now(self) -> datetime:
        """Wall time, aware UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()


@attrs.frozen
class SystemEntropy:
    """`redflag_core.ports.Entropy` of the operating system. Stateless: share it freely, also over a fork."""

    def token(self, size: int) -> bytes:
        """*size* bytes from the kernel's generator."""
        return os.urandom(size)
