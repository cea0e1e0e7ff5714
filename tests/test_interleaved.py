"""Variants take turns, and a slow machine slows both sides."""

from noble_fx.interleaved import interleave, machine


def test_overheads_are_ratios_within_a_round():
    seconds, time, calls = {"plain": 1, "slow": 3}, [0.0], []

    def call(name):
        def run():
            time[0] += seconds[name] * (1 + len(calls) // 2)  # the machine gets ever slower, round by round
            calls.append(name)

        return run

    plain, slow = interleave({n: call(n) for n in seconds}, "plain", 10, warmup=2, clock=lambda: time[0])
    assert (plain.name, plain.overhead, slow.name) == ("plain", 0.0, "slow")
    assert slow.overhead == 2.0
    assert slow.spread == (2.0, 2.0)
    assert calls[:4] == ["plain", "slow", "slow", "plain"]
    assert len(calls) == 2 * 12


def test_a_figure_says_what_it_depends_on():
    assert {"cpu", "threads", "python", "torch"} <= machine().keys()
