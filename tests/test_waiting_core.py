"""A core on its way to sleep and back: the real serve loop, held at its system calls (tests/support/stepped_core.py).

In tests/test_pull_machine.py cores are simulated; here is what holds that simulation and _serve.pyx together.
"""

import pytest
from support import syscalls
from support.lone_core import NOP
from support.stepped_core import SteppedCore

pytestmark = pytest.mark.skipif(not syscalls.is_possible(), reason="needs seccomp(2)")

# What it does next, by the system call that shows it
LOOKS, SLEEPS, PARKS = "poll", "epoll_wait", "recvmsg"


@pytest.fixture
def core(tmp_path):
    core = SteppedCore(tmp_path)
    yield core
    core.close()


# What happens while it looks for something to do and finds nothing, and what it does then.
BEFORE_IT_SLEEPS = {
    "nothing": (lambda core: None, [SLEEPS]),
    "a connection is passed on": (SteppedCore.pass_on, [LOOKS, SLEEPS]),
    "a core is wanted": (SteppedCore.want, [PARKS]),
}


@pytest.mark.parametrize(("happens", "then"), BEFORE_IT_SLEEPS.values(), ids=BEFORE_IT_SLEEPS)
def test_before_it_sleeps(core, happens, then):
    happens(core)
    assert [core.calls.next() for _ in then] == then
    assert core.waits is (then[-1] == SLEEPS)
    assert core.has_reported is (then[-1] == PARKS)


# What happens while it sleeps; what it does then, and what it has passed on.
WHILE_IT_SLEEPS = {
    "a connection comes": ("connection", LOOKS, 0),
    "a message comes": ("message", PARKS, 0),
    "it is claimed, and a message comes": ("claim message", PARKS, 0),
    "it is claimed, and a connection wakes it": ("claim connection", PARKS, 1),
}


@pytest.mark.parametrize(("happens", "then", "passed_on"), WHILE_IT_SLEEPS.values(), ids=WHILE_IT_SLEEPS)
def test_while_it_sleeps(core, happens, then, passed_on):
    core.calls.until(SLEEPS)
    client = None
    for what in happens.split():
        if what == "claim":
            core.claim()
        elif what == "message":
            core.send(NOP)
        else:
            client = core.connect()
    assert core.calls.next() == then
    assert core.passed_on == passed_on
    assert core.has_rung is bool(passed_on)
    assert not core.waits
    if client:
        with client:
            if not passed_on:
                assert client.recv(1000).endswith(b"served")
