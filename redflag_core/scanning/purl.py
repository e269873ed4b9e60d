"""
Package URLs: one text for each package, which advisories, bills of materials and other tools understand.

``pkg:type/namespace/name@version?qualifiers#subpath``. A `PackageUrl` is always in its canonical form, so two that
mean the same package are equal, and so are their texts.

Rules for the whole file:

- Reading is lenient where the specification tells parsers to be, and only there: slashes after ``pkg:``, case of
  type and keys, needless percent-encoding, empty segments and values. All else is refused.
- What RedFlag makes for each package manager is decided here, and nowhere else.

Source: ECMA-427, Package-URL specification, and its type definitions of deb, rpm, oci and docker.
"""

import re
import string
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

import attrs
from attrs import validators

from redflag_core._fields import UUID_FORM, line
from redflag_core.codec import MAX_MESSAGE
from redflag_core.errors import MalformedError
from redflag_core.scanning.model import MAX_NAME, MAX_TEXT, Package, clean_text

MAX_PURL: Final = 4096
"""Longest text, characters. The longest of a distribution have about 200."""

MAX_SEGMENTS: Final = 16
"""Most segments of a namespace or subpath: image repositories have about four."""

MAX_QUALIFIERS: Final = 32
"""Most qualifiers; the specification names about ten."""

NO_ARCH: Final = "any"
"""`Package.arch` where the manager has none."""

DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io"})
"""Names of the registry that is meant when an image names none."""

_TYPE: Final = "[a-z][a-z0-9.-]*"
_KEY: Final = "[a-z][a-z0-9._-]*"
_HEAD: Final = re.compile("[Pp][Kk][Gg]:/*([^/]*)/(.*)", re.DOTALL)
_PLAIN: Final = r"[A-Za-z0-9\-._~:!$&'()*+,;=]|%[0-9A-Fa-f]{2}"
_PART: Final = re.compile(rf"(?:{_PLAIN})+")
_VALUE: Final = re.compile(rf"(?:{_PLAIN}|[/@])+")
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

_LOWER_NAMESPACE: Final = frozenset({"deb", "rpm"})
_LOWER_NAME: Final = frozenset({"deb", "oci"})
"""Types that RedFlag makes whose namespace or name is not case-sensitive. Of other types, nothing is changed."""

_KB: Final = re.compile("KB[0-9]{5,9}", re.IGNORECASE)
_EPOCH: Final = re.compile("(?:([0-9]{1,10}):)?([^:]+)")
_IMAGE: Final = re.compile(
    r"(?:(?P<registry>(?=[^/]*[.:]|localhost/)[A-Za-z0-9.-]+(?::[0-9]{1,5})?)/)?"
    r"(?P<path>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""A reference to an image: the part before the first slash is a registry when it can be no path."""


def _segments(most: int) -> Any:
    return validators.deep_iterable(validators.and_(line(MAX_NAME), _no_slash), validators.max_len(most))


def _no_slash(_purl: object, attribute: "attrs.Attribute[str]", segment: str) -> None:
    if "/" in segment:
        raise ValueError(f"a segment of {attribute.name} holds a slash")


def _no_outer_slash(_purl: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if value != value.strip("/"):
        raise ValueError(f"{attribute.name} starts or ends with a slash")


def _no_dots(_purl: object, attribute: "attrs.Attribute[Any]", segments: tuple[str, ...]) -> None:
    if not {".", ".."}.isdisjoint(segments):
        raise ValueError(f"{attribute.name} holds . or .. as a segment")


def _is_pair(purl: Any, attribute: "attrs.Attribute[Any]", pair: tuple[str, str]) -> None:
    validators.matches_re(_KEY)(purl, attribute, pair[0])
    line(MAX_TEXT)(purl, attribute, pair[1])


def _in_order(_purl: Any, attribute: "attrs.Attribute[Any]", pairs: tuple[tuple[str, str], ...]) -> None:
    if list(pairs) != _sorted(pairs) or len(dict(pairs)) != len(pairs):
        raise ValueError(f"{attribute.name} are each there once and in their order")


_IS_TYPE: Final[Any] = validators.and_(validators.matches_re(_TYPE), validators.max_len(MAX_NAME))
_NAME: Final[Any] = validators.and_(line(MAX_NAME), _no_outer_slash)
_SUBPATH: Final[Any] = validators.and_(_segments(MAX_SEGMENTS), _no_dots)
_QUALIFIERS: Final[Any] = validators.and_(
    validators.max_len(MAX_QUALIFIERS), validators.deep_iterable(_is_pair), _in_order
)


@attrs.frozen(kw_only=True)
class PackageUrl:
    """
    A package URL in its canonical form; its text is that of `str`.

    Make one with `make_purl`, which brings the parts into this form, or with the function for a package manager.

    Attributes:
        type: Such as ``deb`` or ``rpm``, in lower case.
        namespace: Segments of the prefix: the vendor, the owner of an image.
        name: Name of the package.
        version: Its version, None when all are meant.
        qualifiers: Keys in lower case, with their values, in their order.
        subpath: Segments of a path within the package.
    """

    type: str = attrs.field(validator=_IS_TYPE)
    namespace: tuple[str, ...] = attrs.field(default=(), validator=_segments(MAX_SEGMENTS))
    name: str = attrs.field(validator=_NAME)
    version: str | None = attrs.field(default=None, validator=validators.optional(line(MAX_NAME)))
    qualifiers: tuple[tuple[str, str], ...] = attrs.field(default=(), validator=_QUALIFIERS)
    subpath: tuple[str, ...] = attrs.field(default=(), validator=_SUBPATH)

    def __attrs_post_init__(self) -> None:
        folded = (
            _lower(self.namespace) if self.type in _LOWER_NAMESPACE else self.namespace,
            self.name.translate(_LOWER) if self.type in _LOWER_NAME else self.name,
        )
        if folded != (self.namespace, self.name):
            raise ValueError(f"a package URL of type {self.type} is in lower case")
        if len(str(self)) > MAX_PURL:
            raise ValueError(f"a package URL has at most {MAX_PURL} characters")

    def __str__(self) -> str:
        version = "" if self.version is None else f"@{_encode(self.version)}"
        qualifiers = "&".join(f"{key}={_encode(value)}" for key, value in self.qualifiers)
        path = "/".join(map(_encode, self.subpath))
        whole = "/".join((self.type, *map(_encode, (*self.namespace, self.name))))
        return f"pkg:{whole}{version}{qualifiers and '?' + qualifiers}{path and '#' + path}"

    def qualifier(self, key: str) -> str | None:
        """The value of a qualifier, None when it is not there."""
        return dict(self.qualifiers).get(key)


def make_purl(
    kind: str,
    name: str,
    *,
    namespace: Iterable[str] = (),
    version: str | None = None,
    qualifiers: Mapping[str, str | None] | None = None,
    subpath: Iterable[str] = (),
) -> PackageUrl:
    """
    Make a package URL of its parts, none of them percent-encoded. What has no value is left out.

    Args:
        kind: Type, in any case.
        name: Name of the package. Untrusted, as all parts.
        namespace: Segments of the prefix.
        version: Its version; None or empty when all are meant.
        qualifiers: Values by key; a None or empty value is the same as no key.
        subpath: Segments of a path within the package.

    Raises:
        MalformedError: A part is missing, too long, or holds what it must not.
    """
    kind, segments = kind.translate(_LOWER), tuple(namespace)
    given = [(key.translate(_LOWER), value) for key, value in (qualifiers or {}).items() if value]
    try:
        return PackageUrl(
            type=kind,
            namespace=_lower(segments) if kind in _LOWER_NAMESPACE else segments,
            name=name.translate(_LOWER) if kind in _LOWER_NAME else name,
            version=version or None,
            qualifiers=tuple(_sorted(given)),
            subpath=tuple(subpath),
        )
    except UnicodeEncodeError:
        raise MalformedError("not a package URL: a part holds half a character") from None
    except ValueError as error:
        raise MalformedError(clean_text(f"not a package URL: {error.args[0]}", max_len=MAX_MESSAGE)) from None


def parse_purl(text: str) -> PackageUrl:
    """
    Read a package URL.

    Args:
        text: Untrusted.

    Raises:
        MalformedError: It is none: a part is missing, an encoding is wrong, or a separator stands where it must be
            encoded, as the ``@`` of an npm scope.
    """
    if len(text) > MAX_PURL:
        raise MalformedError(f"not a package URL: longer than {MAX_PURL} characters")
    rest, _, subpath = text.partition("#")
    rest, asked, qualifiers = rest.partition("?")
    head = _HEAD.fullmatch(rest)
    if head is None:
        raise MalformedError("not a package URL: it starts with pkg: and a type")
    path, versioned, version = head[2].partition("@")
    *namespace, name = _decode_path(path) or [""]
    return make_purl(
        head[1],
        name,
        namespace=namespace,
        version=_decode(version, _PART) if versioned else None,
        qualifiers=_read_qualifiers(qualifiers) if asked else None,
        subpath=[segment for segment in _decode_path(subpath) if segment not in (".", "..")],
    )


def _read_qualifiers(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in text.split("&"):
        key, given, value = pair.partition("=")
        key = key.translate(_LOWER)
        if not given or key in found:
            raise MalformedError("not a package URL: each qualifier is key=value, and there once")
        found[key] = _decode(value, _VALUE) if value else ""
    return found


def _decode_path(path: str) -> list[str]:
    return [_decode(segment, _PART) for segment in path.split("/") if segment]


def _decode(text: str, allowed: re.Pattern[str]) -> str:
    if not allowed.fullmatch(text):
        raise MalformedError("not a package URL: a part is empty, or holds what must be percent-encoded")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("not a package URL: a part is not UTF-8") from None


def _encode(text: str) -> str:
    # Letters, digits and .-_~ stay as they are, and so does the colon, wherever it stands.
    return quote(text, safe=":")


def _lower(segments: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(segment.translate(_LOWER) for segment in segments)


def _sorted(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    # By the text of each pair: of the keys a and a-b, the longer one is first.
    return sorted(pairs, key=lambda pair: pair[0] + "=")


# --- for each package manager ---


def deb_purl(
    name: str, version: str | None, *, vendor: str, arch: str | None = None, distro: str | None = None
) -> PackageUrl:
    """
    That of a package of dpkg and apt.

    Args:
        name: Binary package; the source package with the architecture ``source``.
        version: With its epoch, as dpkg writes it.
        vendor: ``ID`` of os-release(5): ``debian``, ``ubuntu``.
        arch: As dpkg names it.
        distro: Codename of the release, such as ``bookworm``.

    Raises:
        MalformedError: One of them cannot be part of it. The same holds for the functions below.
    """
    return make_purl("deb", name, namespace=[vendor], version=version, qualifiers={"arch": arch, "distro": distro})


def rpm_purl(
    name: str, version: str | None, *, vendor: str, arch: str | None = None, distro: str | None = None
) -> PackageUrl:
    """
    That of a package of rpm and dnf.

    Args:
        name: As rpm names it; its case counts.
        version: ``epoch:version-release`` or ``version-release``. An epoch of 0 is the same as none.
        vendor: ``ID`` of os-release(5): ``fedora``, ``rhel``, ``rocky``.
        arch: As rpm names it.
        distro: The release, such as ``fedora-41``.
    """
    parts = _EPOCH.fullmatch(version or "")
    if version and parts is None:
        raise MalformedError("not a version of rpm: it is epoch:version-release")
    epoch, release = (parts[1], parts[2]) if parts else (None, None)
    return make_purl(
        "rpm",
        name,
        namespace=[vendor],
        version=release,
        qualifiers={"arch": arch, "distro": distro, "epoch": (epoch or "").lstrip("0")},
    )


def winget_purl(identifier: str, version: str | None = None) -> PackageUrl:
    """
    That of a package of winget: its PackageIdentifier is the name, whole and in its case.

    The specification has no type for it. ``pkg:winget/Git.Git@2.50.1`` is what other inventories write.
    """
    return make_purl("winget", identifier, version=version)


def windows_update_purl(update: str) -> PackageUrl:
    """
    That of an update of Windows: ``pkg:generic/microsoft/windows-update/KB5034441``.

    The specification has no type for it, and asks for ``generic`` then. There is no version: each KB is an update
    of its own, and one that follows it has another number.

    Args:
        update: Number of its article, ``KB5034441``; the UpdateID, a UUID, of one without (a driver).
    """
    if _KB.fullmatch(update):
        name = update.upper()
    elif re.fullmatch(UUID_FORM, update.lower()):
        name = update.lower()
    else:
        raise MalformedError("not an update of Windows: neither a KB number nor an UpdateID")
    return make_purl("generic", name, namespace=["microsoft", "windows-update"])


def image_purl(reference: str, *, arch: str | None = None) -> PackageUrl:
    """
    That of a container image.

    One with a digest is the same wherever it is stored: type ``oci``, with the place as ``repository_url``. One
    without is whatever its tag points at now: type ``docker``.

    Args:
        reference: As Docker takes it: ``[registry/]path[:tag][@sha256:digest]``.
        arch: Architecture, when the digest is that of one.
    """
    parts = _IMAGE.fullmatch(reference) if len(reference) <= MAX_TEXT else None
    if parts is None:
        raise MalformedError("not a reference to an image: it is [registry/]path[:tag][@sha256:digest]")
    registry, tag, digest = parts["registry"] or "docker.io", parts["tag"], parts["digest"]
    *owner, name = parts["path"].split("/")
    on_hub = registry in DOCKER_HUB
    if digest is None:
        owner = owner if not on_hub or owner != ["library"] else []
        place = {"repository_url": None if on_hub else registry, "arch": arch}
        return make_purl("docker", name, namespace=owner, version=tag or "latest", qualifiers=place)
    repository = "/".join((registry, *(owner or (["library"] if on_hub else [])), name))
    place = {"arch": arch, "repository_url": repository, "tag": tag}
    return make_purl("oci", name, version=digest, qualifiers=place)


def package_purl(
    manager: str, package: Package, *, vendor: str = "", distro: str | None = None, version: str | None = None
) -> PackageUrl | None:
    """
    That of a package as a scanner reported it.

    Args:
        manager: Its package manager, as in the report.
        package: Untrusted.
        vendor: ``ID`` of os-release(5); needed for apt and dnf.
        distro: Release of the distribution, as for `deb_purl` and `rpm_purl`.
        version: Another version than the installed one, such as the available one.

    Returns:
        None for a manager that has no form here.

    Raises:
        MalformedError: The package has no such form: its name or version is not one of its manager.
    """
    version = version or package.installed
    arch = None if package.arch == NO_ARCH else package.arch
    if manager == "apt":
        return deb_purl(package.name, version, vendor=vendor, arch=arch, distro=distro)
    if manager == "dnf":
        return rpm_purl(package.name, version, vendor=vendor, arch=arch, distro=distro)
    if manager == "winget":
        return winget_purl(package.name, version)
    if manager == "windows_update":
        return windows_update_purl(package.name)
    if manager == "docker_image":
        separator = "@" if version and version.startswith("sha256:") else ":"
        return image_purl(package.name if version is None else f"{package.name}{separator}{version}", arch=arch)
    return None
