"""Addresses of the server: https, or plain http on this machine."""

import pytest

from redflag_agent.address import parse_address
from redflag_core.errors import ConfigurationError


@pytest.mark.parametrize(
    "text, authority, url",
    [
        ("https://RF.Example", "rf.example", "https://rf.example/x"),
        ("https://rf.example:443/", "rf.example", "https://rf.example/x"),
        ("https://rf.example:8443", "rf.example:8443", "https://rf.example:8443/x"),
        ("https://rf.example/red/flag/", "rf.example", "https://rf.example/red/flag/x"),
        ("http://127.0.0.1:8750", "127.0.0.1:8750", "http://127.0.0.1:8750/x"),
        ("http://localhost:80", "localhost", "http://localhost/x"),
        ("https://[2001:DB8::1]:8443", "[2001:db8::1]:8443", "https://[2001:db8::1]:8443/x"),
        ("http://[::1]:8750", "[::1]:8750", "http://[::1]:8750/x"),
    ],
)
def test_an_address_has_one_authority_and_one_url(text, authority, url):
    """The authority that requests sign is the one on the wire: lower case, no default port."""
    address = parse_address(text)

    assert (authority, url) == (address.authority, address.url("/x"))


@pytest.mark.parametrize("text", ["http://rf.example", "http://10.0.0.1:8750", "http://localhost.evil.example"])
def test_plain_http_is_for_this_machine_only(text):
    """No token ever travels in clear, and there is no flag for it."""
    with pytest.raises(ConfigurationError, match="this machine only"):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    ["", "rf.example", "ftp://rf.example", "https://", "https://u:secret@rf.example", "https://rf.example?x=1",
     "https://rf.example#f", "https://rf.example:99999", "https://rf.example/a b", "https://rf.example/%2e%2e/x",
     "https://rf.exa\nmple", "https://rf.example/..//x", "https://réd.example"],
)  # fmt: skip
def test_anything_else_is_refused_without_showing_a_password(text):
    """The message says what to write, and holds no credential."""
    with pytest.raises(ConfigurationError, match=r"write https://HOST") as refusal:
        parse_address(text)

    assert "secret" not in refusal.value.message
