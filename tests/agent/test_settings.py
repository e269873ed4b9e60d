"""Settings: the command line wins over the file, and what means nothing is named."""

import pytest

from redflag_agent.settings import SettingsError, load_settings, parse_interval, with_intervals
from redflag_core.errors import ConfigurationError


def write(tmp_path, text):
    """A settings file."""
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_no_file_is_all_defaults(tmp_path):
    """An agent needs no settings file, and reads no proxy from the environment."""
    settings = load_settings(tmp_path / "agent.toml", {})

    assert (None, None, 3600.0) == (settings.proxy, settings.ca_file, settings.policy("apt").interval)


def test_the_command_line_wins_over_the_file(tmp_path):
    """A given option replaces the file's value; one that was not given leaves it."""
    path = write(tmp_path, 'proxy = "http://file:1"\nlog_level = "debug"\n')

    settings = load_settings(path, {"proxy": "http://line:2", "log_level": None, "servers": ()})

    assert ("http://line:2", "debug") == (settings.proxy, settings.log_level)


def test_addresses_of_the_command_line_replace_those_of_the_registration(tmp_path):
    """Several, in their order; without any, the registration's are used."""
    given = load_settings(tmp_path / "agent.toml", {"servers": ("https://b.example", "https://a.example")})
    none = load_settings(tmp_path / "agent.toml", {"servers": ()})

    assert ["https://b.example", "https://a.example"] == [str(each) for each in given.addresses(("https://c",))]
    assert ["https://c.example"] == [str(each) for each in none.addresses(("https://c.example",))]


def test_each_scanner_has_its_own_policy(tmp_path):
    """Interval and timeout are settable for each scanner, in the file and on the command line."""
    path = write(tmp_path, "[scanners.apt]\ninterval = 7200\ntimeout = 60\n")

    settings = with_intervals(load_settings(path, {}), dict([parse_interval("dnf=120")]))

    assert (7200.0, 60.0) == (settings.policy("apt").interval, settings.policy("apt").timeout)
    assert 120.0 == settings.policy("dnf").interval


def test_an_interval_on_the_command_line_keeps_the_files_timeout(tmp_path):
    """Only what is named is changed."""
    path = write(tmp_path, "[scanners.apt]\ntimeout = 60\n")

    settings = with_intervals(load_settings(path, {}), {"apt": 600.0})

    assert (600.0, 60.0) == (settings.policy("apt").interval, settings.policy("apt").timeout)


@pytest.mark.parametrize(
    "text, said",
    [
        ("prox = 'x'", "prox"),
        ("proxy = 5", "proxy"),
        ("proxy = 'socks5://h:1'", "proxy"),
        ("servers = 'https://x'", "servers"),
        ("servers = ['http://example.org']", "this machine only"),
        ("tls_pin = 'sha256:12'", "TLS pin"),
        ("ca_file = '/nowhere/ca.pem'", "/nowhere/ca.pem"),
        ("log_level = 'loud'", "log_level"),
        ("[scanners.apt]\ninterval = 1", "interval"),
        ("[scanners.apt]\nenabled = 'yes'", "enabled"),
        ("= broken", "TOML"),
        ("x = '" + "y" * 70_000 + "'", "larger"),
    ],
)
def test_a_setting_that_means_nothing_is_named(tmp_path, text, said):
    """One sentence names the setting; it never starts with half of them."""
    with pytest.raises(ConfigurationError, match=said):
        load_settings(write(tmp_path, text), {})


@pytest.mark.parametrize("text", ["apt", "apt=", "apt=soon", "apt=5", "apt=inf", "apt=nan"])
def test_an_interval_must_be_seconds(text):
    """Neither words nor a hot loop."""
    with pytest.raises(SettingsError, match="SCANNER=SECONDS"):
        parse_interval(text)


def test_a_proxy_with_a_password_is_never_shown(tmp_path):
    """Neither the error nor the text form of the settings holds it."""
    with pytest.raises(SettingsError) as refusal:
        load_settings(tmp_path / "agent.toml", {"proxy": "socks://user:hunter2@proxy:1"})
    settings = load_settings(tmp_path / "agent.toml", {"proxy": "http://user:hunter2@proxy:1"})

    assert "hunter2" not in refusal.value.message + repr(settings)
