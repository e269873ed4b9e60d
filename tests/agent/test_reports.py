"""What goes on the wire of a scan: everything, a change, or why there is nothing."""

import attrs
from hypothesis import given
from hypothesis import strategies as st

from redflag_agent.reports import content_digest, make_report
from redflag_core import codec, scanning
from redflag_core.messages import Report
from redflag_core.scanning import PackageDelta, apply_delta, failed_report, inventory_hash
from tests.helpers.agents import failed, new_id, package, scan_report

NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)


def failure(error="dpkg is broken"):
    """A failed scan."""
    return failed_report(failed(error), scanner="apt", manager="apt", taken_at=5, duration_ms=1)


@given(NAMES, NAMES, st.sampled_from([None, "2.0"]))
def test_base_and_change_give_the_new_inventory(before, after, available):
    """Whatever changed, the receiver that holds the base ends with the hash that was announced."""
    old = scan_report(*(package(name) for name in before))
    new = scan_report(*(package(name, available=available) for name in after))

    body = make_report(new, report_id=new_id(1), base=old)

    after_there = apply_delta(old.packages, PackageDelta(body.packages, body.removed))
    assert body.hash == inventory_hash(after_there) == inventory_hash(new.packages)
    assert body.base == inventory_hash(old.packages)


def test_without_a_base_everything_is_sent():
    """A full report stands alone."""
    report = scan_report(package("a"), package("b"))

    body = make_report(report, report_id=new_id(1), base=None)

    assert (None, report.packages, ()) == (body.base, body.packages, body.removed)


def test_a_failed_scan_says_nothing_about_packages():
    """Not even that none changed."""
    body = make_report(failure(), report_id=new_id(1), base=scan_report(package("a")))

    assert (None, None, (), "dpkg is broken") == (body.base, body.hash, body.packages, body.error)


def test_the_time_on_the_wire_is_the_end_of_the_scan():
    """A scanner notes when it began."""
    report = scan_report()

    assert report.taken_at + 1 == make_report(report, report_id=new_id(1), base=None).taken_at


@given(
    st.dictionaries(
        st.text("abcé\U0001f6a9", max_size=3), st.none() | st.integers(-5, 2**53 - 1) | st.floats(-1e9, 1e9)
    ),
    st.lists(st.text("abcé", min_size=1, max_size=5), max_size=3),
    st.booleans(),
)
def test_both_sides_make_one_digest_of_a_report(facts, warnings, has_failed):
    """The server's, of what arrived, is the agent's, of what it said; else the server would ask for ever."""
    report = failure() if has_failed else scan_report(package("a"), warnings=tuple(warnings))
    report = attrs.evolve(report, facts=facts)

    wire = codec.dump(make_report(report, report_id=new_id(1), base=None))
    held = codec.parse(Report, wire, max_bytes=len(wire))

    assert content_digest(report) == scanning.content_digest(
        status=held.status, error=held.error, warnings=held.warnings, facts=held.facts, inventory=held.hash
    )


def test_equal_content_has_one_digest_whenever_it_was_seen():
    """Time and duration are not content; state, warnings and errors are."""
    report = scan_report(package("a"), package("b"))
    later = attrs.evolve(report, taken_at=report.taken_at + 9, duration_ms=7, packages=report.packages[::-1])
    others = [
        scan_report(package("a")),
        scan_report(package("a"), package("b", available="2")),
        scan_report(*report.packages, warnings=("old lists",)),
        attrs.evolve(report, facts={"reboot_required": True}),
        failure(),
        failure("locked"),
    ]

    assert content_digest(report) == content_digest(later)
    assert 7 == len({content_digest(entry) for entry in [report, *others]})
