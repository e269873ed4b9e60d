"""
CVSS: the base score of a version 3 vector, and how severe a score is.

The arithmetic is exact: every weight is a fraction of thousandths, and the one rounding is the specification's.
Scores of version 4 come from a table of 270 entries and are not computed here: an advisory states its own.

Source: FIRST, Common Vulnerability Scoring System v3.0 and v3.1: Specification Document, sections 5 to 7 and
appendix A (v3.1); v4.0, section 6 (the same scale of severities).
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from redflag_core.errors import MalformedError
from redflag_core.scanning.model import Severity

MAX_VECTOR: Final = 256
"""Longest vector, characters. One with every metric of version 3 has 134."""

_BANDS: Final = ((9.0, Severity.CRITICAL), (7.0, Severity.IMPORTANT), (4.0, Severity.MODERATE))
"""Lowest score of each severity, of versions 3 and 4, which call them Critical, High and Medium. Below is Low."""


def _weights(**thousandths: int) -> Mapping[str, Fraction]:
    return MappingProxyType({value: Fraction(number, 1000) for value, number in thousandths.items()})


_BASE: Final[Mapping[str, Mapping[str, Fraction]]] = MappingProxyType(
    {
        "AV": _weights(N=850, A=620, L=550, P=200),
        "AC": _weights(L=770, H=440),
        "PR": _weights(N=850, L=620, H=270),
        "UI": _weights(N=850, R=620),
        "S": _weights(U=0, C=0),
        "C": _weights(H=560, L=220, N=0),
        "I": _weights(H=560, L=220, N=0),
        "A": _weights(H=560, L=220, N=0),
    }
)
_PRIVILEGES_OF_ANOTHER_SCOPE: Final = _weights(N=850, L=680, H=500)

_OTHERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "E": "XHFPU",
        "RL": "XUWTO",
        "RC": "XCRU",
        "CR": "XHML",
        "IR": "XHML",
        "AR": "XHML",
        "MAV": "XNALP",
        "MAC": "XLH",
        "MPR": "XNLH",
        "MUI": "XNR",
        "MS": "XUC",
        "MC": "XHLN",
        "MI": "XHLN",
        "MA": "XHLN",
    }
)
"""Temporal and environmental metrics: they may be there, and say nothing about the base score."""

_VECTOR: Final = re.compile(r"CVSS:3\.([01])((?:/[A-Z]{1,3}:[A-Z])+)")


def severity_of_score(score: float) -> Severity:
    """
    How severe a score of CVSS 3 or 4 is.

    Args:
        score: From 0.0 to 10.0. Untrusted.

    Returns:
        Unknown for 0.0, which CVSS calls None: nobody says that lacking the fix does harm, and RedFlag has no word
        for harmless.

    Raises:
        MalformedError: It is not between 0.0 and 10.0.
    """
    if not 0.0 <= score <= 10.0:
        raise MalformedError("not a CVSS score: it is from 0.0 to 10.0")
    if score == 0.0:
        return Severity.UNKNOWN
    return next((severity for least, severity in _BANDS if score >= least), Severity.LOW)


def base_score(vector: str) -> float:
    """
    The base score of a vector of CVSS 3.0 or 3.1.

    Args:
        vector: Such as ``CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H``, in any order. Untrusted.

    Returns:
        The score, with one decimal.

    Raises:
        MalformedError: Another version, a metric that is missing, unknown or there twice, or a value that is none.
    """
    minor, chosen = _read(vector)
    changed = chosen["S"] == "C"
    weight = {metric: values[chosen[metric]] for metric, values in _BASE.items()}
    privileges = _PRIVILEGES_OF_ANOTHER_SCOPE[chosen["PR"]] if changed else weight["PR"]
    lost = 1 - (1 - weight["C"]) * (1 - weight["I"]) * (1 - weight["A"])
    exploitability = Fraction(822, 100) * weight["AV"] * weight["AC"] * privileges * weight["UI"]
    impact = _changed_impact(lost) if changed else Fraction(642, 100) * lost
    if impact <= 0:
        return 0.0
    together = (impact + exploitability) * (Fraction(108, 100) if changed else 1)
    return _round_up(min(together, Fraction(10)), minor) / 10


def _changed_impact(lost: Fraction) -> Fraction:
    return Fraction(752, 100) * (lost - Fraction(29, 1000)) - Fraction(325, 100) * (lost - Fraction(2, 100)) ** 15


def _round_up(score: Fraction, minor: int) -> int:
    """To whole tenths. Since 3.1 what is less than half of a hundred-thousandth above one is not counted."""
    if minor == 1:
        score = Fraction(round(score * 100_000), 100_000)
    return -(-score * 10 // 1)


def _read(vector: str) -> tuple[int, dict[str, str]]:
    """Minor version, and the value of each base metric."""
    found = _VECTOR.fullmatch(vector) if len(vector) <= MAX_VECTOR else None
    if found is None:
        raise MalformedError("not a CVSS 3 vector: it is CVSS:3.1/ and metrics")
    pairs = [pair.partition(":") for pair in found[2][1:].split("/")]
    chosen = {metric: value for metric, _, value in pairs}
    known = all(value in _BASE.get(metric, _OTHERS.get(metric, "")) for metric, value in chosen.items())
    if not known or len(chosen) != len(pairs) or not _BASE.keys() <= chosen.keys():
        raise MalformedError("not a CVSS 3 vector: a metric is missing, unknown, or there twice")
    return int(found[1]), {metric: chosen[metric] for metric in _BASE}
