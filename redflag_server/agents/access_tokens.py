"""Access tokens of agents: JWT, HS256 only, bound to the agent's key and its machine evidence."""

import hashlib
from collections import OrderedDict
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
import jwt

from redflag_core.encoding import b64url_encode
from redflag_core.enrolment import ACCESS_TOKEN_SECONDS
from redflag_core.ports import Entropy
from redflag_server.problems import TokenError

ALGORITHM: Final = "HS256"
AUDIENCE: Final = "redflag-agent"
TYPE: Final = "redflag-agent+jwt"
"""Header ``typ``: tokens of people are of another type and signed with another key."""

MAX_REMEMBERED: Final = 65_536
"""Tokens that need not be verified again: some 500 bytes each."""

_REQUIRED: Final = ["iss", "aud", "sub", "iat", "nbf", "exp", "jti", "cnf", "ver", "rgen", "evd"]


@attrs.frozen
class AccessClaims:
    """
    What an access token says.

    Attributes:
        agent_id: Whose it is.
        key_id: The only key that may use it.
        token_version: The agent's token version when it was issued; a higher one on record ends it.
        refresh_generation: The refresh generation it was given in.
        evidence_digest: Digest of the machine evidence it was given for.
    """

    agent_id: UUID
    key_id: str
    token_version: int
    refresh_generation: int
    evidence_digest: str


def issue(claims: AccessClaims, *, secret: bytes, server: str, now: datetime, entropy: Entropy) -> str:
    """Sign an access token that is valid from *now* for `ACCESS_TOKEN_SECONDS`."""
    moment = int(now.timestamp())
    payload = {
        "iss": server,
        "aud": AUDIENCE,
        "sub": str(claims.agent_id),
        "iat": moment,
        "nbf": moment,
        "exp": moment + ACCESS_TOKEN_SECONDS,
        "jti": b64url_encode(entropy.token(16)),
        "cnf": {"kid": claims.key_id},
        "ver": claims.token_version,
        "rgen": claims.refresh_generation,
        "evd": claims.evidence_digest,
    }
    return jwt.encode(payload, secret, algorithm=ALGORITHM, headers={"typ": TYPE})


@attrs.frozen
class _Signed:
    """What a token says that was signed here, and from when until when it may be used, unix seconds."""

    claims: AccessClaims
    not_before: int
    expires: int

    def at(self, now: datetime) -> AccessClaims:
        if not self.not_before - 60 <= now.timestamp() <= self.expires:
            raise TokenError("the access token has expired: ask for a new one")
        return self.claims


def verify(text: str, *, secret: bytes, server: str, now: datetime) -> AccessClaims:
    """
    Verify an access token.

    Args:
        text: Untrusted token.
        secret: HMAC secret of agents' tokens.
        server: Server id: issuer.
        now: Database time, aware UTC.

    Raises:
        TokenError: Not a live token of this server for agents.
    """
    return _open(text, secret=secret, server=server).at(now)


@attrs.define(eq=False)
class TokenCache:
    """
    Verifies access tokens, each of them once: an agent sends the same one for a day. Belongs to one event loop.

    Nothing is remembered but that a token was signed here. Its times are checked each time, and whether it was
    withdrawn is the gate's to say.

    Args:
        secret: HMAC secret of agents' tokens.
        server: Server id: issuer.
        limit: Tokens remembered.
    """

    _secret: bytes = attrs.field(repr=False)
    _server: str
    limit: int = MAX_REMEMBERED
    _known: OrderedDict[bytes, _Signed] = attrs.field(factory=OrderedDict, init=False, repr=False)

    def verify(self, text: str, *, now: datetime) -> AccessClaims:
        """See `verify`."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        signed = self._known.get(digest)
        if signed is None:
            signed = self._known[digest] = _open(text, secret=self._secret, server=self._server)
            if len(self._known) > self.limit:
                self._known.popitem(last=False)
        self._known.move_to_end(digest)
        return signed.at(now)


def _open(text: str, *, secret: bytes, server: str) -> _Signed:
    try:
        decoded = jwt.decode_complete(
            text,
            secret,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=server,
            # The times are compared by `_Signed`, with the time given.
            options={"require": _REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
        if decoded["header"].get("typ") != TYPE:
            raise TokenError("this is not an access token of an agent")
        return _signed(decoded["payload"])
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        raise TokenError("the access token is not valid: ask for a new one") from None


def _signed(payload: dict[str, Any]) -> _Signed:
    claims = AccessClaims(
        UUID(payload["sub"]),
        str(payload["cnf"]["kid"]),
        int(payload["ver"]),
        int(payload["rgen"]),
        str(payload["evd"]),
    )
    return _Signed(claims, int(payload["nbf"]), int(payload["exp"]))
