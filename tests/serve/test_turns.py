from swift_sd.serve.turns import MOST, Turns


def served(turns: Turns, clients: dict[str, float], steps: int) -> str:
    """Who goes next, so many times; a step of each client takes so many seconds."""
    order = []
    for _ in range(steps):
        order.append(turns.next(clients))
        turns.spend(order[-1], clients[order[-1]])
    return "".join(order)


def test_clients_get_equal_time_whatever_their_steps_take():
    assert served(Turns(), {"a": 1.0, "b": 1.0}, 6) == "ababab"
    order = served(Turns(), {"a": 3.0, "b": 1.0}, 400)
    assert order.count("b") == 3 * order.count("a")


def test_who_comes_goes_first_and_has_saved_nothing_up():
    turns = Turns()
    served(turns, {"a": 1.0, "b": 1.0}, 101)
    assert served(turns, {"a": 1.0, "b": 1.0, "c": 1.0}, 9) == "cbabcabca"


def test_who_leaves_and_comes_back_at_once_has_still_used_its_time():
    turns, order = Turns(), ""
    for _ in range(12):  # requests of a single step each, of one client
        order += served(turns, {"a": 1.0, "b": 1.0}, 1)
        if order[-1] == "a":
            order += served(turns, {"b": 1.0}, 1)
    assert order.count("a") <= order.count("b")
    turns = Turns()
    turns.next("ab")
    turns.spend("a", 10.0)  # its only step; the answer is complete
    assert served(turns, {"b": 1.0}, 2) == "bb"
    assert served(turns, {"a": 1.0, "b": 1.0}, 8) == "bbbbbbbb"


def test_only_so_many_clients_are_remembered():
    turns = Turns()
    for number in range(3 * MOST):
        turns.next([str(number)])
        turns.spend(str(number), 1.0)
    assert len(turns._clocks) <= MOST
