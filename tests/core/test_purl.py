"""Package URLs: what is made, what is read, and what the specification's own examples say."""

import contextlib
import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redflag_core.errors import MalformedError
from redflag_core.scanning import Package, PackageState
from redflag_core.scanning.purl import (
    MAX_PURL,
    MAX_QUALIFIERS,
    MAX_SEGMENTS,
    PackageUrl,
    deb_purl,
    image_purl,
    make_purl,
    package_purl,
    parse_purl,
    rpm_purl,
    windows_update_purl,
    winget_purl,
)

DIGEST = "sha256:" + "0f1e2d3c" * 8

# Examples that the specification and its type definitions publish: parts, and the canonical text.
PUBLISHED = {
    "pkg:deb/debian/curl@7.50.3-1?arch=i386&distro=jessie": deb_purl(
        "curl", "7.50.3-1", vendor="debian", arch="i386", distro="jessie"
    ),
    "pkg:deb/debian/dpkg@1.19.0.4?arch=amd64&distro=stretch": deb_purl(
        "dpkg", "1.19.0.4", vendor="debian", arch="amd64", distro="stretch"
    ),
    "pkg:deb/ubuntu/dpkg@1.19.0.4?arch=amd64": deb_purl("dpkg", "1.19.0.4", vendor="ubuntu", arch="amd64"),
    "pkg:deb/debian/attr@1:2.4.47-2?arch=source": deb_purl("attr", "1:2.4.47-2", vendor="debian", arch="source"),
    "pkg:deb/debian/attr@1:2.4.47-2%2Bb1?arch=amd64": deb_purl(
        "attr", "1:2.4.47-2+b1", vendor="debian", arch="amd64"
    ),
    "pkg:rpm/fedora/curl@7.50.3-1.fc25?arch=i386&distro=fedora-25": rpm_purl(
        "curl", "7.50.3-1.fc25", vendor="Fedora", arch="i386", distro="fedora-25"
    ),
    "pkg:rpm/fedora/centerim@4.22.10-1.el6?arch=i686&distro=fedora-25&epoch=1": rpm_purl(
        "centerim", "1:4.22.10-1.el6", vendor="fedora", arch="i686", distro="fedora-25"
    ),
    "pkg:docker/cassandra@latest": image_purl("cassandra"),
    "pkg:docker/smartentry/debian@dc437cc87d10": image_purl("smartentry/debian:dc437cc87d10"),
    "pkg:docker/customer/dockerimage@sha256:244fd47e07d10?repository_url=gcr.io": make_purl(
        "docker",
        "dockerimage",
        namespace=["customer"],
        version="sha256:244fd47e07d10",
        qualifiers={"repository_url": "gcr.io"},
    ),
    "pkg:oci/debian@sha256:244fd47e07d10?arch=amd64&repository_url=docker.io%2Flibrary%2Fdebian&tag=latest": (
        make_purl(
            "oci",
            "debian",
            version="sha256:244fd47e07d10",
            qualifiers={"repository_url": "docker.io/library/debian", "arch": "amd64", "tag": "latest"},
        )
    ),
    "pkg:npm/%40angular/animation@12.3.1": make_purl("npm", "animation", namespace=["@angular"], version="12.3.1"),
    "pkg:npm/mypackage@12.4.5?vcs_url=git:%2F%2Fhost.com%2Fpath%2Fto%2Frepo.git%404345abcd34343": make_purl(
        "npm",
        "mypackage",
        version="12.4.5",
        qualifiers={"vcs_url": "git://host.com/path/to/repo.git@4345abcd34343"},
    ),
    "pkg:golang/google.golang.org/genproto#googleapis/api/annotations": make_purl(
        "golang",
        "genproto",
        namespace=["google.golang.org"],
        subpath=["googleapis", "api", "annotations"],
    ),
    "pkg:generic/openssl@1.1.10g?checksum=sha1:ad9503c3e994a4f%2Csha256:41bf9088b3a1e6c1ef1d": make_purl(
        "generic",
        "openssl",
        version="1.1.10g",
        qualifiers={"checksum": "sha1:ad9503c3e994a4f,sha256:41bf9088b3a1e6c1ef1d"},
    ),
    "pkg:nuget/EnterpriseLibrary.Common@6.0.1304": make_purl(
        "nuget", "EnterpriseLibrary.Common", version="6.0.1304"
    ),
}

# Spellings that it publishes as input, and what they are in canonical form.
PUBLISHED_SPELLINGS = {
    "pkg:Rpm/fedora/curl@7.50.3-1.fc25?Arch=i386&Distro=fedora-25": (
        "pkg:rpm/fedora/curl@7.50.3-1.fc25?arch=i386&distro=fedora-25"
    ),
    "pkg:rpm/centerim@4.22.10-1.el6?arch=i686&epoch=1&distro=fedora-25": (
        "pkg:rpm/centerim@4.22.10-1.el6?arch=i686&distro=fedora-25&epoch=1"
    ),
    "pkg:docker/customer/dockerimage@sha256%3A244fd47e07d1004f0aed9c?repository_url=gcr.io": (
        "pkg:docker/customer/dockerimage@sha256:244fd47e07d1004f0aed9c?repository_url=gcr.io"
    ),
    "pkg:oci/debian@sha256%3A244fd47e07d10?repository_url=ghcr.io/debian&tag=bullseye": (
        "pkg:oci/debian@sha256:244fd47e07d10?repository_url=ghcr.io%2Fdebian&tag=bullseye"
    ),
    "pkg:generic/bitwarderl?vcs_url=git%2Bhttps://git.fsfe.org/dxtr/bitwarderl%40cc55108da32": (
        "pkg:generic/bitwarderl?vcs_url=git%2Bhttps:%2F%2Fgit.fsfe.org%2Fdxtr%2Fbitwarderl%40cc55108da32"
    ),
    "pkg://gem/ruby-advisory-db-check@0.12.4": "pkg:gem/ruby-advisory-db-check@0.12.4",
    "pkg:npm/%40babel/core#/googleapis/api/annotations/": "pkg:npm/%40babel/core#googleapis/api/annotations",
    "pkg:npm/core@2.0.1#/googleapis/api/annotations/": "pkg:npm/core@2.0.1#googleapis/api/annotations",
}

PUBLISHED_FAILURES = [
    "EnterpriseLibrary.Common@6.0.1304",
    "pkg:EnterpriseLibrary.Common@6.0.1304",
    "pkg:n&g?inx/nginx@0.8.9",
    "pkg:3nginx/nginx@0.8.9",
    "pkg:nginx:a/nginx@0.8.9",
    "pkg:npm/myartifact@1.0.0?in%20production=true",
    "pkg:maven/@1.3.4",
    "pkg%3Amaven/org.apache.commons/io",
]


@pytest.mark.parametrize("text,purl", PUBLISHED.items(), ids=str)
def test_the_published_examples_are_made_and_read(text, purl):
    """The specification's parts give its text, and its text gives the parts."""
    assert text == str(purl)
    assert purl == parse_purl(text)


@pytest.mark.parametrize("spelling,canonical", PUBLISHED_SPELLINGS.items(), ids=str)
def test_the_published_spellings_are_read(spelling, canonical):
    """What the specification takes for the same is the same."""
    assert canonical == str(parse_purl(spelling))


@pytest.mark.parametrize("text", PUBLISHED_FAILURES)
def test_the_published_failures_fail(text):
    """What the specification calls no package URL is none."""
    with pytest.raises(MalformedError):
        parse_purl(text)


def test_an_unencoded_scope_is_refused():
    """The @ of an npm scope could be that of a version: it must be encoded, and guessing is not done."""
    with pytest.raises(MalformedError):
        parse_purl("pkg:npm/@babel/core#/googleapis/api/annotations/")


# Encoding


@pytest.mark.parametrize("character", "azAZ09.-_~:")
def test_what_needs_no_encoding_is_not_encoded(character):
    """Letters, digits, four marks and the colon stay, in every part."""
    assert f"pkg:x/{character}a@{character}?k={character}#{character}a" == str(
        make_purl("x", f"{character}a", version=character, qualifiers={"k": character}, subpath=[f"{character}a"])
    )


@pytest.mark.parametrize(
    "character", [chr(code) for code in range(0x20, 0x7F) if not re.match(r"[\w.~:-]", chr(code))]
)
def test_all_else_is_encoded(character):
    """Each other printable character is two upper-case hex digits, in every part that may hold it."""
    encoded = f"%{ord(character):02X}"
    text = str(make_purl("x", f"a{character}b", version=character, qualifiers={"k": character}))

    assert f"pkg:x/a{encoded}b@{encoded}?k={encoded}" == text


def test_what_is_not_ascii_is_utf_8():
    """Each byte of a character is encoded."""
    assert "pkg:x/%C3%A9%E2%82%AC" == str(make_purl("x", "\u00e9\u20ac"))


@pytest.mark.parametrize("character", "!$&'()*+,;=")
def test_what_a_path_may_hold_unencoded_is_read(character):
    """Encoding more than others do is no reason to refuse them."""
    assert f"a{character}b" == parse_purl(f"pkg:x/a{character}b").name


@pytest.mark.parametrize("character", '"<>\\^`{|}[] \x7f\x80')
def test_what_no_url_holds_is_refused(character):
    """A package URL is a URL."""
    for text in (f"pkg:x/a{character}b", f"pkg:x/a@{character}", f"pkg:x/a?k={character}", f"pkg:x/a#{character}"):
        with pytest.raises(MalformedError):
            parse_purl(text)


def test_qualifiers_are_in_the_order_of_their_texts():
    """The equal sign counts: a hyphen, a full stop and digits come before it, letters behind."""
    values = dict.fromkeys(("ab", "a", "a0", "a.b", "a-b", "a_b"), "1")

    assert "pkg:x/y?a-b=1&a.b=1&a0=1&a=1&a_b=1&ab=1" == str(make_purl("x", "y", qualifiers=values))


@pytest.mark.parametrize("encoded", ["%FF", "%C3", "%ED%A0%80", "%C0%AF", "%", "%4", "%4g"])
def test_an_encoding_that_is_none_is_refused(encoded):
    """Two hex digits for each byte, and the bytes are strict UTF-8."""
    for text in (f"pkg:x/a{encoded}", f"pkg:x/a@{encoded}", f"pkg:x/a?k={encoded}", f"pkg:x/a#{encoded}"):
        with pytest.raises(MalformedError):
            parse_purl(text)


@pytest.mark.parametrize(
    "qualifiers",
    ["", "arch", "=amd64", "arch=a&arch=b", "arch=a&Arch=a", "arch=a&", "&arch=a", "arch=a&&k=b", "1a=b"],
)
def test_qualifiers_that_are_none_are_refused(qualifiers):
    """Each is key=value, and there once, in whatever case."""
    with pytest.raises(MalformedError):
        parse_purl(f"pkg:x/y?{qualifiers}")


@pytest.mark.parametrize("text", ["pkg:x/y@", "pkg:x/y@1@2", "pkg:x/y@1/2", "pkg:x/y#a#b", "pkg:x/y?a=b?c=d"])
def test_a_separator_where_it_must_be_encoded_is_refused(text):
    """What it would separate must not be guessed."""
    with pytest.raises(MalformedError):
        parse_purl(text)


# Parts


def test_a_qualifier_is_found_by_its_key():
    """One that is not there is None."""
    purl = make_purl("x", "y", qualifiers={"Arch": "amd64", "distro": "", "epoch": None})

    assert ("amd64", None, None) == tuple(map(purl.qualifier, ("arch", "distro", "epoch")))


@pytest.mark.parametrize(
    "parts",
    [
        {"kind": ""},
        {"kind": "a/b"},
        {"kind": "1a"},
        {"kind": "a+b"},
        {"kind": "a" * 257},
        {"name": ""},
        {"name": "/a"},
        {"name": "a/"},
        {"name": "a\nb"},
        {"name": "a" * 257},
        {"name": "\ud800"},
        {"namespace": ["a/b"]},
        {"namespace": [""]},
        {"namespace": ["a"] * (MAX_SEGMENTS + 1)},
        {"namespace": ["\ud800"]},
        {"version": "a\x00"},
        {"version": "\ud800"},
        {"version": "a" * 257},
        {"qualifiers": {"a": "1", "A": "2"}},
        {"qualifiers": {"a b": "1"}},
        {"qualifiers": {"": "1"}},
        {"qualifiers": {"a": "1\n"}},
        {"qualifiers": {"a": "x" * 1001}},
        {"qualifiers": {"a": "\ud800"}},
        {"qualifiers": {f"k{number}": "1" for number in range(MAX_QUALIFIERS + 1)}},
        {"subpath": ["a", ".."]},
        {"subpath": ["."]},
        {"subpath": ["a/b"]},
        {"subpath": [""]},
        {"subpath": ["a"] * (MAX_SEGMENTS + 1)},
        {"qualifiers": {"a": "\u20ac" * 500}},
    ],
    ids=str,
)
def test_a_part_that_cannot_be_one_is_refused(parts):
    """Missing, too long, or with what the part must not hold; and the whole has a bound."""
    with pytest.raises(MalformedError) as caught:
        make_purl(**({"kind": "x", "name": "y"} | parts))

    assert len(caught.value.message) <= 300


@pytest.mark.parametrize(
    "parts",
    [
        {"kind": "a" * 256},
        {"name": "a" * 256},
        {"name": "a/b"},
        {"namespace": ["a"] * MAX_SEGMENTS},
        {"namespace": [".", ".."]},
        {"version": "a" * 256},
        {"qualifiers": {"a": "x" * 1000}},
        {"qualifiers": {f"k{number:02}": "1" for number in range(MAX_QUALIFIERS)}},
        {"subpath": ["...", "a"]},
        {"subpath": ["a"] * MAX_SEGMENTS},
    ],
    ids=str,
)
def test_a_part_at_its_bound_is_one(parts):
    """Each bound is inclusive, and the text is read again."""
    purl = make_purl(**({"kind": "x", "name": "y"} | parts))

    assert purl == parse_purl(str(purl))


def test_a_text_is_read_up_to_its_bound():
    """The longest is read, and one character more is refused, whatever it is."""
    longest = "pkg:" + "/" * (MAX_PURL - 7) + "x/y"

    assert make_purl("x", "y") == parse_purl(longest)
    with pytest.raises(MalformedError, match="longer than"):
        parse_purl(longest.replace("pkg:", "pkg:/"))


def test_a_package_url_of_the_largest_size_is_made():
    """The bound on the whole is inclusive."""
    values = {f"k{number}": "x" * 1000 for number in range(4)}
    room = MAX_PURL - len(str(make_purl("x", "y", qualifiers=values)))
    purl = make_purl("x", "y" + "y" * room, qualifiers=values)

    assert MAX_PURL == len(str(purl))
    assert purl == parse_purl(str(purl))
    with pytest.raises(MalformedError):
        make_purl("x", "yy" + "y" * room, qualifiers=values)


@pytest.mark.parametrize(
    "parts",
    [
        {"type": "deb", "name": "Curl"},
        {"type": "deb", "name": "curl", "namespace": ("Debian",)},
        {"type": "rpm", "name": "curl", "namespace": ("Fedora",)},
        {"type": "oci", "name": "API"},
        {"type": "Deb", "name": "curl"},
        {"type": "x", "name": "y", "qualifiers": (("b", "1"), ("a", "1"))},
        {"type": "x", "name": "y", "qualifiers": (("a", "1"), ("a", "1"))},
        {"type": "x", "name": "y", "qualifiers": (("A", "1"),)},
        {"type": "x", "name": "y", "version": ""},
    ],
    ids=str,
)
def test_a_value_is_always_in_canonical_form(parts):
    """Two values of one package are equal because there is only one form."""
    with pytest.raises(ValueError, match=r".+"):
        PackageUrl(**parts)


@pytest.mark.parametrize(
    "kind,expected",
    [
        ("deb", "pkg:deb/acme/tool"),
        ("rpm", "pkg:rpm/acme/Tool"),
        ("oci", "pkg:oci/Acme/tool"),
        ("docker", "pkg:docker/Acme/Tool"),
        ("winget", "pkg:winget/Acme/Tool"),
    ],
)
def test_case_is_that_of_the_type(kind, expected):
    """Where a type is not case-sensitive it is in lower case; elsewhere nothing is changed."""
    assert expected == str(make_purl(kind, "Tool", namespace=["Acme"]))


def test_only_ascii_letters_have_their_case_changed():
    """Other scripts are left as they are: lower case depends on the language there."""
    assert "\u0130x" == make_purl("deb", "\u0130X", namespace=["debian"]).name


# Any text

parts_of_text = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(
    lambda text: not {"\u2028", "\u2029"} & set(text)
)
segments = parts_of_text.filter(lambda text: "/" not in text)
purls = st.builds(
    make_purl,
    st.sampled_from(["deb", "rpm", "oci", "docker", "winget", "generic", "x.y-z", "NPM"]),
    parts_of_text.map(lambda text: text.strip("/")).filter(bool),
    namespace=st.lists(segments, max_size=3),
    version=st.none() | parts_of_text,
    qualifiers=st.dictionaries(
        st.from_regex(r"[a-zA-Z][a-zA-Z0-9._-]{0,5}", fullmatch=True).map(str.lower), parts_of_text, max_size=4
    ),
    subpath=st.lists(segments.filter(lambda text: text not in (".", "..")), max_size=3),
)


@given(purls)
def test_what_is_made_is_read_again(purl):
    """Every package URL survives its text, and its text is ASCII."""
    text = str(purl)

    assert text.isascii()
    assert purl == parse_purl(text)
    assert text == str(parse_purl(text))


@given(st.text(max_size=60) | st.text("pkg:/@?#%&=.aA2\u00e9", max_size=40).map("pkg:x/".__add__))
def test_any_text_is_a_package_url_or_malformed(text):
    """Nothing else is raised, and what is read is in canonical form."""
    try:
        purl = parse_purl(text)
    except MalformedError:
        return
    assert purl == parse_purl(str(purl))


@given(purls, st.data())
def test_a_damaged_package_url_is_one_or_malformed(purl, data):
    """Inserting anything anywhere gives another package URL or the one error."""
    text = str(purl)
    at = data.draw(st.integers(0, len(text)))
    damaged = text[:at] + data.draw(st.text("/@?#%&=:. \n\ud800x", min_size=1, max_size=2)) + text[at:]
    with contextlib.suppress(MalformedError):
        assert isinstance(parse_purl(damaged), PackageUrl)


def test_a_hostile_text_is_refused_at_once():
    """A long text that fails at its end takes no more time than its length."""
    for text in ("pkg:x/" + "a" * 4000 + "^", "pkg:x/y?k=" + "a" * 4000 + "^", "pkg:x/y@" + "%61" * 1300 + "^"):
        with pytest.raises(MalformedError):
            parse_purl(text)
    with pytest.raises(MalformedError):
        image_purl("a-" * 499)


# Package managers


@pytest.mark.parametrize(
    "version,expected",
    [
        ("1:2-3", "@2-3?epoch=1"),
        ("0:2-3", "@2-3"),
        ("00:2-3", "@2-3"),
        ("010:2-3", "@2-3?epoch=10"),
        ("2-3", "@2-3"),
        (None, ""),
        ("", ""),
    ],
)
def test_the_epoch_of_an_rpm_is_a_qualifier(version, expected):
    """An epoch of zero is the same as none."""
    assert f"pkg:rpm/fedora/x{expected}" == str(rpm_purl("x", version, vendor="fedora"))


@pytest.mark.parametrize("version", [":1", "a:1", "1:", "1:2:3", "12345678901:1", "1:2\n"])
def test_what_is_no_version_of_rpm_is_refused(version):
    """A colon stands behind an epoch, and that is a number."""
    with pytest.raises(MalformedError):
        rpm_purl("x", version, vendor="fedora")


@pytest.mark.parametrize("make", [deb_purl, rpm_purl])
def test_a_distribution_is_always_named(make):
    """The same name is another package in another distribution."""
    with pytest.raises(MalformedError):
        make("curl", "1", vendor="")


@pytest.mark.parametrize("update", ["KB12345", "KB123456789", "kb5034441"])
def test_an_update_of_windows_is_named_by_its_article(update):
    """In the spelling that Microsoft uses."""
    assert f"pkg:generic/microsoft/windows-update/{update.upper()}" == str(windows_update_purl(update))


def test_an_update_of_windows_without_an_article_is_named_by_its_id():
    """Drivers have no article; their UpdateID is in lower case."""
    update = "1B4F3A5C-2D6E-4F70-8A91-B2C3D4E5F607"

    assert f"pkg:generic/microsoft/windows-update/{update.lower()}" == str(windows_update_purl(update))


@pytest.mark.parametrize(
    "update",
    [
        "",
        "5034441",
        "KB",
        "KB1234",
        "KB1234567890",
        "KB503444x",
        "KB5034441\n",
        "KB\u0661\u0661\u0661\u0661\u0661",
        "1b4f3a5c",
    ],
)
def test_what_is_no_update_of_windows_is_refused(update):
    """A title is no name."""
    with pytest.raises(MalformedError):
        windows_update_purl(update)


def test_a_winget_package_keeps_its_identifier():
    """It is one name, dots and case included."""
    assert "pkg:winget/Git.Git@2.50.1" == str(winget_purl("Git.Git", "2.50.1"))


@pytest.mark.parametrize(
    "reference,expected",
    [
        ("nginx", "pkg:docker/nginx@latest"),
        ("library/nginx:1", "pkg:docker/nginx@1"),
        ("docker.io/library/nginx:1", "pkg:docker/nginx@1"),
        ("index.docker.io/acme/api", "pkg:docker/acme/api@latest"),
        ("gcr.io/library/nginx:1", "pkg:docker/library/nginx@1?repository_url=gcr.io"),
        ("gcr.io/nginx", "pkg:docker/nginx@latest?repository_url=gcr.io"),
        ("localhost/x", "pkg:docker/x@latest?repository_url=localhost"),
        ("localhosts/x", "pkg:docker/localhosts/x@latest"),
        ("host:5000/a/b/c:v_1", "pkg:docker/a/b/c@v_1?repository_url=host:5000"),
        ("my.registry/a__b--c.d", "pkg:docker/a__b--c.d@latest?repository_url=my.registry"),
        (f"nginx@{DIGEST}", f"pkg:oci/nginx@{DIGEST}?repository_url=docker.io%2Flibrary%2Fnginx"),
        (
            f"docker.io/library/nginx:1@{DIGEST}",
            f"pkg:oci/nginx@{DIGEST}?repository_url=docker.io%2Flibrary%2Fnginx&tag=1",
        ),
        (f"gcr.io/nginx@{DIGEST}", f"pkg:oci/nginx@{DIGEST}?repository_url=gcr.io%2Fnginx"),
        (f"acme/a/b@{DIGEST}", f"pkg:oci/b@{DIGEST}?repository_url=docker.io%2Facme%2Fa%2Fb"),
    ],
)
def test_an_image_is_named_by_its_digest_or_else_by_its_tag(reference, expected):
    """References are read as Docker reads them."""
    assert expected == str(image_purl(reference))


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "NGINX",
        "nginx:",
        "nginx:-1",
        "nginx:" + "1" * 129,
        "nginx@sha256:" + "a" * 63,
        "nginx@sha256:" + "A" * 64,
        "nginx@sha512:" + "a" * 64,
        "a//b",
        "/a",
        "a/",
        "-a",
        "a-",
        "https://gcr.io/a",
        "gcr.io:123456/a",
        "nginx\n",
        "a/" * 499 + "aaa",
    ],
)
def test_what_is_no_reference_to_an_image_is_refused(reference):
    """Among them what Docker itself refuses."""
    with pytest.raises(MalformedError):
        image_purl(reference)


def test_a_reference_is_read_up_to_its_bound():
    """1,000 characters, which no registry takes."""
    longest = "/".join(["a" * 249] * 3 + ["a" * 250])

    assert 1000 == len(longest)
    assert "a" * 250 == image_purl(longest).name
    with pytest.raises(MalformedError):
        image_purl("a" + longest)


def test_the_longest_tag_is_read():
    """128 characters, as Docker allows."""
    assert "1" * 128 == image_purl("nginx:" + "1" * 128).version


PACKAGE = Package(name="curl", arch="amd64", installed="7.88.1-10", state=PackageState.CURRENT)


@pytest.mark.parametrize(
    "manager,fields,expected",
    [
        ("apt", {}, "pkg:deb/debian/curl@7.88.1-10?arch=amd64&distro=r"),
        ("apt", {"installed": None}, "pkg:deb/debian/curl?arch=amd64&distro=r"),
        (
            "dnf",
            {"installed": "1:7-2.el9", "arch": "noarch"},
            "pkg:rpm/debian/curl@7-2.el9?arch=noarch&distro=r&epoch=1",
        ),
        ("winget", {"name": "cURL.cURL", "arch": "any"}, "pkg:winget/cURL.cURL@7.88.1-10"),
        ("windows_update", {"name": "KB5034441", "arch": "any"}, "pkg:generic/microsoft/windows-update/KB5034441"),
        ("docker_image", {"name": "acme/api", "installed": "2", "arch": "any"}, "pkg:docker/acme/api@2"),
        ("docker_image", {"name": "acme/api:2", "installed": None}, "pkg:docker/acme/api@2?arch=amd64"),
        (
            "docker_image",
            {"name": "acme/api:2", "installed": DIGEST},
            f"pkg:oci/api@{DIGEST}?arch=amd64&repository_url=docker.io%2Facme%2Fapi&tag=2",
        ),
    ],
)
def test_a_reported_package_has_the_form_of_its_manager(manager, fields, expected):
    """Name, installed version and architecture of a report; what the manager does not have is left out."""
    purl = package_purl(manager, attrs.evolve(PACKAGE, **fields), vendor="debian", distro="r")

    assert expected == str(purl)


def test_another_version_of_a_reported_package_can_be_named():
    """That of the update, for one."""
    assert "pkg:deb/debian/curl@8?arch=amd64" == str(package_purl("apt", PACKAGE, vendor="debian", version="8"))


def test_a_manager_without_a_form_has_none():
    """A scanner of somebody else's may report anything."""
    assert package_purl("brew", PACKAGE) is None
