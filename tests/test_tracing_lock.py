"""One thread traces at a time; one that traces already, and a forked child, do not wait."""

import os
import threading

from noble_fx.tracing_lock import tracing


def test_another_thread_waits_and_the_same_one_does_not():
    order = []

    def other():
        with tracing():
            order.append("other")

    thread = threading.Thread(target=other)
    with tracing(), tracing():
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_child_forked_while_another_thread_traces_does_not_wait():
    inside, done = threading.Event(), threading.Event()

    def hold():
        with tracing():
            inside.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    child = os.fork()
    if child == 0:
        with tracing():
            os._exit(7)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
