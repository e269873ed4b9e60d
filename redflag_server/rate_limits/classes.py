"""What there are limits for, what holds while nobody sets anything, and what a limit must leave room for."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import attrs

from redflag_core.errors import PolicyError
from redflag_core.rate_limit import RateLimitPolicy, Scope, ScopedPolicy, parse_scoped
from redflag_server.settings import Settings


class RateClass(StrEnum):
    """Requests that have a limit together."""

    AGENT = "agent"
    REPORT = "report"
    RESULT = "result"
    ERROR = "error"
    TOKEN = "token"  # noqa: S105
    OPERATOR = "operator"
    ADDRESS = "address"
    REGISTER = "register"
    SIGN_IN = "sign-in"


@attrs.frozen
class Protection:
    """
    What is known of a class.

    Attributes:
        what: Which requests, for people.
        scope: Of what each one has the limit.
        least: The smallest policy that can be set: less would lock out whom it must let in.
        needed_for: What needs so much, for people.
        setting: Field of `Settings` with the policy that holds while none is set; None for no limit of its own.
    """

    what: str
    scope: Scope
    least: RateLimitPolicy
    needed_for: str
    setting: str | None = None

    @property
    def is_coarse(self) -> bool:
        """Whether it is counted by address, before anybody is known: then it is the same for all organizations."""
        return self.scope is Scope.ADDRESS


def _hourly(count: int, burst: int) -> RateLimitPolicy:
    return RateLimitPolicy(count, 3600, burst)


PROTECTIONS: Final[Mapping[RateClass, Protection]] = {
    RateClass.AGENT: Protection(
        "all requests of a machine together",
        Scope.AGENT,
        _hourly(360, 10),
        "a machine asks for a token, checks in, and sends reports and results, often within a minute",
        "agent_limit",
    ),
    RateClass.REPORT: Protection(
        "reports of a machine",
        Scope.AGENT,
        _hourly(12, 5),
        "each scanner has its report",
    ),
    RateClass.RESULT: Protection(
        "results and progress of a machine",
        Scope.AGENT,
        _hourly(60, 10),
        "each command has several signed statements, which wait on the machine",
    ),
    RateClass.ERROR: Protection("error reports of a machine", Scope.AGENT, _hourly(4, 2), "errors must come in"),
    RateClass.TOKEN: Protection(
        "requests of a machine for access tokens",
        Scope.AGENT,
        _hourly(12, 5),
        "without one a machine can do nothing",
    ),
    RateClass.OPERATOR: Protection(
        "requests of one session or API key",
        Scope.KEY,
        _hourly(1800, 30),
        "you must be able to sign in and change it back",
        "operator_limit",
    ),
    RateClass.ADDRESS: Protection(
        "requests of machines from one address, before anybody is known",
        Scope.ADDRESS,
        _hourly(36_000, 300),
        "a whole site of machines can be behind one address",
        "address_limit",
    ),
    RateClass.REGISTER: Protection(
        "registrations from one address",
        Scope.ADDRESS,
        _hourly(60, 5),
        "machines must be able to register",
        "register_limit",
    ),
    RateClass.SIGN_IN: Protection(
        "attempts to sign in from one address",
        Scope.ADDRESS,
        _hourly(60, 5),
        "people mistype their passwords, and share an address",
        "sign_in_limit",
    ),
}

AGENT_CLASSES: Final = tuple(name for name, known in PROTECTIONS.items() if known.scope is Scope.AGENT)
"""Those whose limits a machine meets once it is known."""


def default_of(settings: Settings, name: RateClass) -> RateLimitPolicy | None:
    """What holds while nobody sets anything; None for no limit of its own."""
    setting = PROTECTIONS[name].setting
    policy: RateLimitPolicy | None = None if setting is None else getattr(settings, setting)
    return policy


def text_of(name: RateClass, policy: RateLimitPolicy) -> str:
    """The policy in words, with whose it is: ``60/minute per agent, burst 20``."""
    return str(ScopedPolicy(policy, PROTECTIONS[name].scope))


def open_policy(name: RateClass, text: str) -> RateLimitPolicy:
    """
    Read a policy that somebody wants for a class.

    Args:
        name: The class.
        text: Untrusted; ``60/minute burst 20``, and ``per agent`` where that is what the class counts by.

    Raises:
        PolicyError: It is none, counts by something else, or locks out whom it must let in.
    """
    known, wanted = PROTECTIONS[name], parse_scoped(text)
    if wanted.scope not in (None, known.scope):
        raise PolicyError(f'the limit "{name}" is per {known.scope}, not per {wanted.scope}: leave that out')
    least = known.least
    if wanted.policy.interval > least.interval or wanted.policy.burst < least.burst:
        raise PolicyError(f'the limit "{name}" must be at least {least}: {known.needed_for}')
    return wanted.policy
