"""Package URLs: parts and canonical texts, spellings that mean the same, and texts that are refused."""

from typing import Any, Final

from redflag_core.scanning.purl import (
    PackageUrl,
    deb_purl,
    image_purl,
    make_purl,
    parse_purl,
    rpm_purl,
    windows_update_purl,
    winget_purl,
)

DIGEST: Final = "sha256:" + "0f1e2d3c" * 8

SPELLINGS: Final = {
    "pkg:deb/debian/curl@7.88.1-10%2Bdeb12u12?arch=amd64&distro=bookworm": (
        "pkg://deb/debian/curl@7.88.1-10%2bdeb12u12?distro=bookworm&arch=amd64",
        "PKG:DEB/Debian//CURL@7.88.1-10+deb12u12?Arch=amd64&Distro=bookworm&epoch=",
        "pkg:deb/debian/%63url@7.88.1-10%2Bdeb12u12?arch=amd64&distro=bookworm#",
    ),
    "pkg:rpm/rocky/NetworkManager@1.48.10-2.el9_5?arch=x86_64&distro=rocky-9&epoch=1": (
        "pkg:rpm/ROCKY/NetworkManager/@1.48.10-2.el9_5?epoch=1&arch=x86_64&distro=rocky-9",
    ),
    f"pkg:oci/api@{DIGEST}?arch=amd64&repository_url=ghcr.io%2Facme%2Fapi&tag=2": (
        f"pkg:oci/API@{DIGEST.replace(':', '%3A')}?tag=2&repository_url=ghcr.io/acme/api&arch=amd64",
    ),
    "pkg:generic/a%20b%2Fc@1%402~x?k=%26%3D%25%2F%40#d%C3%A9/e": (
        "pkg:generic/a%20b%2fc@1%402%7Ex?K=%26=%25/@#/d%c3%a9//./../e/",
    ),
    "pkg:generic/x?a-b=1&a.b=2&a=3&a_b=4": ("pkg:generic/x?a=3&a_b=4&a.b=2&a-b=1",),
}
"""Canonical text, and others of the same package."""

REFUSED: Final = (
    "",
    "pkg:",
    "pkg:deb",
    "pkg:deb/",
    "pkg:deb/@1",
    "deb/debian/curl",
    "pkg%3Adeb/debian/curl",
    "npm:deb/debian/curl",
    "pkg:3deb/debian/curl",
    "pkg:d%65b/debian/curl",
    "pkg:d&b/debian/curl",
    "pkg:deb:x/debian/curl",
    "pkg:deb/debian/curl@",
    "pkg:deb/debian/curl@1@2",
    "pkg:deb/debian/curl@1/2",
    "pkg:npm/@angular/cli@1",
    "pkg:deb/debian/curl?",
    "pkg:deb/debian/curl?arch",
    "pkg:deb/debian/curl?=amd64",
    "pkg:deb/debian/curl?arch=a&Arch=b",
    "pkg:deb/debian/curl?arch=a&",
    "pkg:deb/debian/curl?ar%63h=a",
    "pkg:deb/debian/curl?1arch=a",
    "pkg:deb/debian/curl?in production=a",
    "pkg:deb/debian/curl?arch=a?b",
    "pkg:deb/debian/curl#a#b",
    "pkg:deb/debian/cu rl",
    "pkg:deb/debian/cu%rl",
    "pkg:deb/debian/cu%2",
    "pkg:deb/debian/cu%zzrl",
    "pkg:deb/debian/cu%FFrl",
    "pkg:deb/debian/cu%00rl",
    "pkg:deb/debian/cu%0Arl",
    "pkg:deb/debian/cu\u00e9rl",
    "pkg:deb/debian/curl\n",
    "pkg:deb/deb%2Fian/curl",
    "pkg:deb/debian/%2Fcurl",
    "pkg:deb/debian/curl#a%2Fb",
)
"""No package URL: a parser raises."""


def purls() -> Any:
    """All of the above, and what each package manager's packages are called."""
    made = (
        deb_purl("curl", "7.88.1-10+deb12u12", vendor="debian", arch="amd64", distro="bookworm"),
        deb_purl("libstdc++6", "1:14.2.0-19~bpo12+1", vendor="ubuntu", arch="arm64"),
        deb_purl("attr", "1:2.4.47-2", vendor="debian", arch="source"),
        rpm_purl("NetworkManager", "1:1.48.10-2.el9_5", vendor="rocky", arch="x86_64", distro="rocky-9"),
        rpm_purl("bash", "0:5.1.8-9.el9", vendor="rhel", arch="noarch"),
        winget_purl("Microsoft.VisualStudioCode", "1.95.3"),
        winget_purl("Notepad++.Notepad++", "8.7.1"),
        windows_update_purl("kb5034441"),
        windows_update_purl("1B4F3A5C-2D6E-4F70-8A91-B2C3D4E5F607"),
        image_purl("nginx"),
        image_purl("localhost:5000/team/api:2.1", arch="amd64"),
        image_purl(f"nginx:1.27@{DIGEST}"),
        image_purl(f"ghcr.io/acme/api:2@{DIGEST}", arch="amd64"),
        make_purl("generic", "a b/c", version="1@2~x", qualifiers={"k": "&=%/@"}, subpath=("d\u00e9", "e")),
        make_purl("generic", "x", qualifiers={"a_b": "4", "a": "3", "a.b": "2", "a-b": "1"}),
    )
    return {"canonical": [_purl(each) for each in made], "refused": list(REFUSED)}


def _purl(purl: PackageUrl) -> Any:
    text = str(purl)
    assert purl == parse_purl(text)
    return {
        "purl": text,
        "type": purl.type,
        "namespace": list(purl.namespace),
        "name": purl.name,
        "version": purl.version,
        "qualifiers": dict(purl.qualifiers),
        "subpath": list(purl.subpath),
        "same": list(SPELLINGS.get(text, ())),
    }
