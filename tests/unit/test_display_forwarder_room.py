"""How much of what a guest sends may wait."""

import threading

from crannog.display.forwarder_room import Room


def is_held(room: Room, cost: int = 0) -> threading.Thread:
    """Return a thread that waits for room."""
    thread = threading.Thread(target=room.take, args=(cost,), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive(), "it had to wait"
    return thread


def test_a_full_room_holds_up_whoever_comes() -> None:
    room = Room(2, 0)
    room.take()
    room.take()
    waiting = is_held(room)
    room.give()
    waiting.join(5)
    assert not waiting.is_alive()


def test_what_costs_much_waits_for_the_others() -> None:
    room = Room(10, 100)
    room.take(60)
    waiting = is_held(room, 50)
    room.give()
    waiting.join(5)
    assert not waiting.is_alive()


def test_one_alone_may_cost_more() -> None:
    room = Room(10, 100)
    room.take(1000)
    waiting = is_held(room, 1)
    room.give()
    waiting.join(5)
    assert not waiting.is_alive()


def test_giving_too_often_makes_no_room() -> None:
    room = Room(1, 0)
    for _ in range(5):
        room.give()
    room.take()
    is_held(room)
