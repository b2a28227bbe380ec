"""The crowd: attempts become fewer where they only wait for each other, and no fewer where they wait for the next hop."""

from mailkeep.dispatch.crowd import LEAST, TURN_S, Crowd


def after(waited_s, took_s, *, times=200, most=50):
    """Return how many may run at once after attempts of that kind."""
    crowd = Crowd(most)
    for _ in range(times):
        crowd.begin()
        crowd.end(waited_s, took_s)
    room = 0
    while crowd.has_room:
        crowd.begin()
        room += 1
    return room


def test_attempts_that_wait_for_this_process_become_fewer():
    """Their first turn came late, and the rest of their time was no more than the other turns."""
    assert after(waited_s=0.005, took_s=0.02) == LEAST


def test_attempts_that_wait_for_the_next_hop_stay_as_many():
    """However late their turn came: a far next hop needs many at once."""
    assert after(waited_s=0.02, took_s=0.4) == 50


def test_attempts_that_wait_for_nothing_stay_as_many():
    """A first turn within the bound harms nobody."""
    assert after(waited_s=TURN_S, took_s=0.002) == 50


def test_their_number_rises_again():
    """As soon as turns come in time."""
    crowd = Crowd(50)
    for waited_s, took_s in [(0.01, 0.02)] * 100 + [(0.0, 0.01)] * 46:
        crowd.begin()
        crowd.end(waited_s, took_s)
    for _ in range(49):
        crowd.begin()
    assert crowd.has_room


def test_a_small_pool_is_never_asked_for_more_than_it_has():
    """The least that may run is no more than the most."""
    assert after(waited_s=1.0, took_s=1.0, most=1) == 1
