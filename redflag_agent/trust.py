"""Whom the server may be: fetching the root chain and the trust bundle, and believing them only when verified."""

from pathlib import Path
from typing import Final

import attrs

from redflag_agent.answers import ServerRefusedError
from redflag_agent.state import Pins, StateFile
from redflag_agent.transport import ServerClient
from redflag_core import codec
from redflag_core.encoding import b64decode, b64encode
from redflag_core.errors import MalformedError, UnknownKeyError
from redflag_core.keyfiles import read_private, write_private
from redflag_core.ports import Clock
from redflag_core.trust import MAX_ROOTS, bundle_digest, verify_bundle, verify_roots

MAX_TRUST_BYTES: Final = 2 * 1024 * 1024
"""A chain of `MAX_ROOTS` roots of about 1 KiB each, and one bundle."""


@attrs.frozen
class _TrustDocuments:
    v: int
    roots: tuple[str, ...]
    bundle: str


@attrs.frozen
class Held:
    """
    Documents of trust as they are on disk. Whoever acts on them verifies them first: they may be anybody's.

    Attributes:
        roots: Envelopes of the root chain, the first one first.
        bundle: Envelope of the trust bundle.
    """

    roots: tuple[bytes, ...]
    bundle: bytes


@attrs.define
class TrustStore:
    """
    The root chain and the trust bundle that this agent verified last.

    Args:
        path: The file that holds them.
        state: Where version and epoch are remembered, so that a deleted file does not allow a rollback.
        clock: Wall time, for the validity of the bundle.
    """

    path: Path
    state: StateFile
    clock: Clock
    _held: Held | None = attrs.field(default=None, init=False)

    def load(self) -> None:
        """Read what is held. A missing or damaged file is fetched again: it holds nothing that is not public."""
        if not self.path.exists():
            return
        try:
            data = read_private(self.path, max_bytes=MAX_TRUST_BYTES)
            held = codec.parse(_TrustDocuments, data, max_bytes=MAX_TRUST_BYTES)
            roots = tuple(map(b64decode, held.roots))
            self._held = Held(roots, b64decode(held.bundle)) if roots else None
        except MalformedError:
            return

    def held(self) -> Held | None:
        """What is held now, for the executor, which verifies it by itself; None before the first."""
        return self._held

    def is_current(self, digest: str) -> bool:
        """Whether the bundle held is the one that the server announces by its *digest*."""
        return self._held is not None and digest == bundle_digest(self._held.bundle)

    async def refresh(self, client: ServerClient, pins: Pins) -> None:
        """
        Fetch the bundle, and the roots after those held when it is not signed by the newest of them.

        Raises:
            VerificationError: What came is not to be believed; what was held is kept.
            AnswerError, UnreachableError: Nothing came.
        """
        wire = await client.get("/trust/bundle")
        if self._held is not None:
            try:
                return self._accept(self._held.roots, wire, pins)
            except UnknownKeyError:
                pass
        roots = await self._fetch_roots(client)
        return self._accept(roots, wire, pins)

    async def _fetch_roots(self, client: ServerClient) -> tuple[bytes, ...]:
        roots = [] if self._held is None else list(self._held.roots)
        while len(roots) < MAX_ROOTS:
            try:
                roots.append(await client.get(f"/trust/root/{len(roots) + 1}"))
            except ServerRefusedError as refusal:
                if refusal.status == 404:
                    break
                raise
        return tuple(roots)

    def _accept(self, roots: tuple[bytes, ...], wire: bytes, pins: Pins) -> None:
        root = verify_roots(roots, server=pins.server, root_fp=pins.root_fp)
        bundle = verify_bundle(
            wire,
            root.key,
            server=pins.server,
            now=self.clock.now(),
            held_version=self.state.state.bundle_version,
        )
        documents = _TrustDocuments(1, tuple(map(b64encode, roots)), b64encode(wire))
        write_private(self.path, codec.dump(documents), replace=True)
        self.state.update(bundle_version=bundle.version, bundle_epoch=bundle.epoch)
        self._held = Held(roots, wire)
