"""What the last check-in told, and what not: it may have been held open while reports were delivered."""

import pytest

from redflag_agent.contact import Contact
from redflag_core.enrolment import Access, AgentStatus

OLD, NEW = "a" * 64, "b" * 64


def told(contact, status=AgentStatus.ACTIVE, bases=None):
    """A check-in that is answered at once."""
    contact.told(status, bases or {}, since=contact.mark())


@pytest.mark.parametrize(
    "status, stores, takes",
    [
        (AgentStatus.ACTIVE, True, True),
        (AgentStatus.PENDING, False, False),
        (AgentStatus.HARDWARE_CHANGED, False, False),
        (AgentStatus.EXECUTOR_ROLLED_BACK, True, False),
    ],
)
def test_the_status_last_told_counts(status, stores, takes):
    """An executor that lost its journal gets no commands, and goes on reporting."""
    contact = Contact()
    told(contact, status)

    assert (stores, takes) == (contact.allows(Access.STORE), contact.allows(Access.COMMANDS))


def test_nothing_is_delivered_before_the_first_answer_and_after_a_failure():
    """One loop finds out whether the server is there, and not both."""
    contact = Contact()
    assert not contact.allows(Access.STORE)
    told(contact)
    contact.lost()

    assert not contact.allows(Access.STORE)
    told(contact)
    assert contact.allows(Access.STORE)


def test_an_answer_does_not_undo_what_was_accepted_while_it_was_held():
    """The server looked before the report came; what the report made true stays."""
    contact = Contact()
    told(contact, bases={"apt": OLD, "dnf": OLD})
    since = contact.mark()
    contact.accepted("apt", NEW)

    contact.told(AgentStatus.ACTIVE, {"apt": OLD, "dnf": NEW}, since=since)

    assert (NEW, NEW) == (contact.base("apt"), contact.base("dnf"))
    assert (False, True) == (contact.is_current("apt", since), contact.is_current("dnf", since))


def test_an_answer_to_a_later_check_in_counts_again():
    """A server that was restored from a backup is believed: it holds the old inventory."""
    contact = Contact()
    contact.accepted("apt", NEW)

    told(contact, bases={"apt": OLD})

    assert OLD == contact.base("apt")


def test_a_server_that_holds_nothing_any_more_is_believed():
    """A base that it does not name is no base."""
    contact = Contact()
    told(contact, bases={"apt": OLD})
    told(contact, bases={})

    assert contact.base("apt") is None


def test_a_failed_scan_leaves_the_inventory():
    """Its report has no hash: what the server holds of packages is what it was."""
    contact = Contact()
    told(contact, bases={"apt": OLD})

    contact.accepted("apt", None)

    assert OLD == contact.base("apt")


def test_every_answer_is_news():
    """Whatever waited for it can be delivered."""
    contact = Contact()
    told(contact)

    assert contact.news.is_set()
