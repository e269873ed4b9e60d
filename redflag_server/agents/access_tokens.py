"""Access tokens of agents: JWT, HS256 only, bound to the agent's key and its machine evidence."""

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
    try:
        decoded = jwt.decode_complete(
            text,
            secret,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=server,
            # The times are compared below, with the time given.
            options={"require": _REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
        if decoded["header"].get("typ") != TYPE:
            raise TokenError("this is not an access token of an agent")
        return _claims(decoded["payload"], now)
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        raise TokenError("the access token is not valid: ask for a new one") from None


def _claims(payload: dict[str, Any], now: datetime) -> AccessClaims:
    if not int(payload["nbf"]) - 60 <= now.timestamp() <= int(payload["exp"]):
        raise TokenError("the access token has expired: ask for a new one")
    return AccessClaims(
        UUID(payload["sub"]),
        str(payload["cnf"]["kid"]),
        int(payload["ver"]),
        int(payload["rgen"]),
        str(payload["evd"]),
    )
