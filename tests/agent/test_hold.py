"""For how long a check-in is held: shorter at once after a cut, longer again only with time."""

from redflag_agent.hold import LONGER_AFTER, SHORTEST_HOLD, Hold
from redflag_core.messages import MAX_WAIT_SECONDS


def test_each_cut_halves_it_down_to_none():
    """Before it gets so short that holding is only more requests, it is given up."""
    hold, seen = Hold(), []
    for _ in range(6):
        hold = hold.after_cut(1000.0)
        seen.append(hold.seconds)

    assert [25, 12, 6, 5, 0, 0] == seen


def test_answers_make_it_longer_once_an_hour():
    """A proxy that always cuts costs one check-in an hour, not every second one."""
    hold = Hold().after_cut(0.0).after_cut(0.0)

    assert 12 == hold.after_answer(LONGER_AFTER - 1).seconds
    hold = hold.after_answer(LONGER_AFTER)
    assert 24 == hold.seconds
    assert 24 == hold.after_answer(LONGER_AFTER + 1).seconds


def test_holding_that_was_given_up_is_tried_again_after_an_hour():
    """The proxy may be gone."""
    given_up = Hold(SHORTEST_HOLD).after_cut(0.0)

    assert 0 == given_up.after_answer(LONGER_AFTER - 1).seconds
    assert SHORTEST_HOLD == given_up.after_answer(LONGER_AFTER).seconds


def test_it_never_gets_longer_than_the_protocol_allows():
    """However long all goes well."""
    hold = Hold().after_cut(0.0)
    for hour in range(1, 10):
        hold = hold.after_answer(hour * LONGER_AFTER)

    assert MAX_WAIT_SECONDS == hold.seconds
