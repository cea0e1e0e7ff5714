"""One trace at a time, which nothing on another thread can see, and which a forked child does not wait for."""

import copy
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import fx, nn

import noble_fx
from noble_fx.tracing_lock import as_part, tracing

METHODS = (nn.Module.__call__, nn.Module.__getattr__)


@pytest.fixture(autouse=True)
def nothing_is_left_in_torch():
    yield
    assert (nn.Module.__call__, nn.Module.__getattr__) == METHODS
    assert not fx._symbolic_trace._is_fx_tracing_flag


class Watched(nn.Module):
    """Whenever it runs, and so while it is traced, another thread runs another model."""

    def __init__(self, other):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.other = [other]

    def forward(self, x):
        thread = threading.Thread(target=self.other[0])
        thread.start()
        thread.join()
        return self.layers(x)

    def __deepcopy__(self, memo):
        other = type(self)(self.other[0])
        other.layers = copy.deepcopy(self.layers, memo)
        return other


@pytest.mark.parametrize(
    "look",
    [
        lambda model, x: noble_fx.transform(model, rank=2, select="all", capture="fx"),
        lambda model, x: noble_fx.sites(model),
        lambda model, x: noble_fx.transform(model, rank=2, select="all", capture="export", example_inputs=(x,)),
        lambda model, x: noble_fx.programs(noble_fx.transform(model, rank=2, select="all"), x),
    ],
    ids=["fx", "sites", "export", "programs"],
)
def test_other_threads_run_their_models_while_one_traces(look):
    served, x, results = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8), []
    compiled = torch.compile(served, backend="eager")
    expected = compiled(x)

    def serve():
        try:
            results.append(torch.equal(served(x), expected) and torch.equal(compiled(x), expected))
        except Exception as error:
            results.append(error)

    look(Watched(serve), x)
    assert results
    assert set(results) == {True}


def test_what_other_threads_print_is_printed(capsys):
    x = torch.randn(2, 8)
    noble_fx.transform(Watched(lambda: print("served")), rank=2, select="all", capture="export", example_inputs=(x,))
    assert "served" in capsys.readouterr().out


def test_transforms_on_many_threads_leave_nothing_behind():
    class Own(nn.Module):  # an activation that no other test has traced
        def __init__(self, rank):
            super().__init__()

        def forward(self, h):
            return (h * 1.2345).cos()

    def go(i):
        model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)])
        made = noble_fx.transform(model, rank=2, capture=("auto", "fx")[i % 2], act=("cosnet", Own)[i // 2 % 2])
        return made(torch.randn(3, 8)).shape

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(go, range(8))) == {(3, 8)}


def test_a_second_thread_waits_and_a_helper_of_the_first_does_not():
    entered = []

    def enter(who):
        with tracing():
            entered.append(who)

    with tracing(), tracing():
        stranger = threading.Thread(target=enter, args=("stranger",))
        stranger.start()
        helper = threading.Thread(target=as_part(enter), args=("helper",))
        helper.start()
        helper.join(60)
        assert entered == ["helper"]
    stranger.join(60)
    assert entered == ["helper", "stranger"]
    assert as_part(enter) is enter


def test_the_turn_is_given_back_after_an_error():
    with pytest.raises(RuntimeError), tracing():
        raise RuntimeError
    test_a_second_thread_waits_and_a_helper_of_the_first_does_not()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_is_forked_while_another_thread_traces_does_not_wait_for_it():
    go, done = threading.Event(), threading.Event()

    def hold():
        with tracing():
            go.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    go.wait(60)
    child = os.fork()
    if child == 0:
        try:
            noble_fx.transform(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rank=2, capture="fx", select="all")
        except BaseException:
            os._exit(1)
        os._exit(0)
    try:
        until, status = time.monotonic() + 60, None
        while status is None and time.monotonic() < until:
            pid, code = os.waitpid(child, os.WNOHANG)
            status = code if pid else None
            time.sleep(0.01)
        if status is None:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert status == 0
    finally:
        done.set()
        holder.join()
