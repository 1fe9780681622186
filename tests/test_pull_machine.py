"""Pull as a state machine: whatever the order of events, who waits is served while a core is free, and served once.

Theory of operation

The master's side is the real front (tests/support/one_process.py). The workers' side is simulated, an atomic operation
of _serve.pyx at a time: a core's life is a generator, and each `yield` is a place where everybody else may act. Nothing
in here runs at the same time as anything else, so plain reads and writes of the scoreboard are atomic.

Only sleeping is real: the kernel counts a core as waiting at a listening socket only while a thread of it is in
epoll_wait. So a core that sleeps has a thread there, and whoever asks what a core does waits until that is clear: its
thread is blocked or has ended (`Sleep.is_over`).

The front's callback is one action. It is interrupted where it calls the events object: there, too, cores go on.

A core is *free* if it is parked or waits at the sockets, and nothing has come for it. Then this must hold:

    at every moment     if somebody waits and a core is free, the front will be called or another core has something to
                        do. A running request is nothing to rely on, since nobody knows when it ends, and neither is a
                        tick: it is there for workers that were stopped, and a tenth of a second is a long time.
    `all_come_to_rest`  and that leads to something: when all have done what they could do, and cores may be woken for
                        every connection, nobody waits while a core is free.
    until the decision  the front's timer isn't needed, either.
    first changes
    at any time         no request is executed twice, and none on a core that was idle when it was sent away.
    at the end          every request was executed and answered, unless its client left or its core died with it.
"""

import contextlib
import os
import random
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.one_process import SLOT_BYTES, Bench

from wsgimaster import events, lifecycle
from wsgimaster._front import board_slots_offset
from wsgimaster._proto import build
from wsgimaster.processes import make_channel
from wsgimaster.scaling import policy, room
from wsgimaster.scaling.facts import Sample
from wsgimaster.settings import Cheaper, Processes, Settings
from wsgimaster.wakeups import Decision

# MESSAGE_* of _layout.pxd, and the MessageHead: kind, flags, vars_bytes, seq, id, content_length, body_bytes, modifier1
REQUEST, NOP, RETIRE, READY, RETURNED, LISTENERS, HANDED = 1, 2, 3, 4, 5, 7, 8
MESSAGE_HEAD = struct.Struct("<HHIQQqIB27x")
MESSAGE_MOST = MESSAGE_HEAD.size + 65536 + 16384
MOST_PULLED = 64
ONE_PUSH = 1 << 24
OUTCOME_COMPLETE = 4

# What a core is in between two of its steps
RUNNING, SERVING, ASLEEP, PARKED, GONE = "running", "serving", "asleep", "parked", "gone"
ABSENT = "absent"  # gone, and the master knows

# What `look` and `wait` of _serve.pyx return beside the place of a listening socket
CHANNEL, NOTHING, AGAIN = 0, -1, -2

FREELY = Decision(watch=True, wake=0, rest=0)
TIMER_S = 0.2  # the front's timer comes every 2 or 20 ms; more is a loaded machine
ROUNDS = 60  # of the front's callback in which something must have become of a connection that waits


def readable(file, seconds=0.0):
    return bool(select.select([file], [], [], seconds)[0])


# ---- the scoreboard ----


class Number:
    """A number in the scoreboard, where it stands; `form` as for struct."""

    def __init__(self, form, at):
        self.form, self.at = form, at

    def __get__(self, owner, _):
        return struct.unpack_from(self.form, owner.memory, owner.at + self.at)[0]

    def __set__(self, owner, value):
        struct.pack_into(self.form, owner.memory, owner.at + self.at, value)


class Head:
    """BoardHead of _layout.pxd."""

    ring, quiet = Number("<I", 0), Number("<I", 4)
    wanted = Number("<i", 8)
    waiters, arrangements, passed_on = Number("<I", 12), Number("<I", 16), Number("<I", 20)
    last_id = Number("<Q", 72)

    def __init__(self, memory):
        self.memory, self.at = memory, 0


class Slot:
    """Slot of _layout.pxd."""

    taken, sent, done = Number("<Q", 0), Number("<Q", 8), Number("<Q", 16)
    outcome, started = Number("<I", 24), Number("<Q", 32)
    awake = Number("<I", 160)

    def __init__(self, memory, cores, core):
        self.memory, self.at = memory, board_slots_offset(cores) + core * SLOT_BYTES


class Bitmap:
    """One of the three behind the head, for up to 64 cores."""

    word = Number("<Q", 0)

    def __init__(self, memory, cores, which):
        begin, size = board_slots_offset(0), (board_slots_offset(cores) - board_slots_offset(0)) // 3
        self.memory, self.at = memory, begin + which * size

    def set(self, core):
        self.word |= 1 << core

    def clear(self, core):
        """Whether it was set."""
        was = self.word
        self.word = was & ~(1 << core)
        return bool(was >> core & 1)

    def count(self):
        return self.word.bit_count()


# ---- the workers' side ----


class Sleep:
    """A core's epoll_wait, in a thread of its own: nobody else counts as waiting there."""

    def __init__(self, epoll):
        self.epoll, self.found = epoll, None
        self.thread = threading.Thread(target=self.wait)
        self.thread.start()

    def wait(self):
        self.found = self.epoll.poll(-1, 1)

    def is_over(self):
        """As soon as that is clear."""
        while self.thread.is_alive() and not self.is_blocked():
            self.thread.join(0.0002)
        return not self.thread.is_alive()

    def is_blocked(self):
        """Whether the thread sleeps in a system call whose first argument is our epoll: proc(5). Where it waits for the
        interpreter's lock, that is an address. The state comes first: who has just been woken still shows its call."""
        about = Path(f"/proc/self/task/{self.thread.native_id}")
        try:
            state = (about / "stat").read_text().rpartition(")")[2].split()[0]
            call = (about / "syscall").read_text().split()
        except OSError:  # it has just ended
            return False
        return state == "S" and len(call) > 1 and int(call[1], 16) == self.epoll.fileno()


class SimulatedCore:
    """Core of _serve.pyx, as far as it shares anything with others.

    application: called with a client's address and what it has sent, when its request is executed; lose: with its
    address, when the core dies and nobody else knows of it.
    """

    def __init__(self, bench, number, threads, application, lose):
        memory = bench.board.memory
        self.number, self.doorbell = number, bench.board.doorbell
        self.application, self.lose = application, lose
        self.head, self.slot = Head(memory), Slot(memory, bench.cores, number)
        self.finished, self.waiting, self.door = (Bitmap(memory, bench.cores, which) for which in range(3))
        first = number - number % threads
        self.siblings = [Slot(memory, bench.cores, n) for n in range(first, first + threads) if n != number]
        self.channel = socket.socket(fileno=os.dup(bench.worker_ends[number]))
        self.end = os.eventfd(0)  # wakes a sleeping thread at the core's death
        self.epoll, self.sleep, self.listening, self.last_served, self.joined = select.epoll(), None, [], 1, False
        self.client, self.ours = None, False  # ours: nobody else would answer it
        self.has_descriptors = True
        self.condemned = False  # told to leave when it was idle
        self.life, self.state = self.serve(), RUNNING

    def can_go_on(self):
        if self.state == PARKED:
            return readable(self.channel)
        if self.state == ASLEEP:
            return self.sleep.is_over()
        return self.state == RUNNING

    def is_free(self):
        return self.state in (PARKED, ASLEEP) and not self.can_go_on()

    def go_on(self):
        """One step."""
        self.state = next(self.life, GONE)
        if self.state == GONE:
            self.close()

    def end_request(self):
        assert self.state == SERVING
        self.state = RUNNING

    def die(self):
        """Whatever it is doing; the kernel closes what it has."""
        self.life.close()
        if self.client is not None:
            if self.ours:
                self.lose(self.client.getpeername())
            self.client.close()
        self.state = GONE
        self.close()

    def close(self):
        if self.sleep:
            os.eventfd_write(self.end, 1)
            self.sleep.thread.join()
        self.epoll.close()
        os.close(self.end)
        for one in (self.channel, *self.listening):
            one.close()

    # ---- from here on as in _serve.pyx, method by method ----

    def serve(self):
        self.say(READY, 0)
        while True:
            yield PARKED
            data, fds, _, _ = socket.recv_fds(self.channel, MESSAGE_MOST, MOST_PULLED, socket.MSG_DONTWAIT)
            kind, _, _, seq, *_ = MESSAGE_HEAD.unpack_from(data)
            if kind == RETIRE:
                self.leave_sockets()
                return
            if kind == REQUEST:
                self.client = socket.socket(fileno=fds[0])
            yield RUNNING
            self.slot.awake = 1
            yield RUNNING
            if kind == REQUEST:
                yield from self.serve_one(seq, data[MESSAGE_HEAD.size :], pulled=False)
            else:
                self.slot.taken, self.slot.outcome = seq, 0
                if kind == LISTENERS:
                    self.take_sockets(fds, data[MESSAGE_HEAD.size :])
            self.slot.done = seq
            yield RUNNING
            reports = True
            if kind != NOP:
                reports, seq = yield from self.pull(seq)
            self.slot.awake = 0
            yield RUNNING
            if reports:
                yield from self.say_idle(seq)

    def serve_one(self, seq, variables, pulled):
        assert not self.condemned, f"core {self.number} got a request although it was idle when it was sent away"
        self.slot.started, self.slot.outcome = time.monotonic_ns(), 0
        self.slot.taken, self.ours = seq, True
        yield RUNNING
        if self.head.quiet:
            quiet, self.head.quiet = self.head.quiet, 0
            if quiet:
                self.ring()
        yield RUNNING
        self.application(self.client.getpeername(), variables)
        yield SERVING
        self.slot.sent = seq
        with contextlib.suppress(OSError):  # the client has left
            self.client.sendall(b"answer to " + variables.rpartition(b"/")[2])
        self.slot.outcome = OUTCOME_COMPLETE
        yield RUNNING
        if not pulled:  # the master holds it, too
            with contextlib.suppress(OSError):
                self.client.shutdown(socket.SHUT_WR)
        self.part_with_client()
        self.slot.outcome = 0
        yield RUNNING

    def part_with_client(self):
        self.client.close()
        self.client, self.ours = None, False

    def take_sockets(self, fds, numbers):
        self.epoll.register(self.channel, select.EPOLLIN)
        self.epoll.register(self.end, select.EPOLLIN)
        self.listening = [socket.socket(fileno=fd) for fd in fds]
        self.listener_numbers = numbers[: 4 * len(fds) : 4]  # PulledSocket

    def pull(self, seq):
        """go_on of _serve.pyx; (whether it is to report, the last number)."""
        while True:
            wanted = yield from self.is_wanted()
            if wanted or seq % ONE_PUSH == ONE_PUSH - 1 or not self.listening:
                return True, seq
            passed_on = self.head.passed_on
            yield RUNNING
            found = self.look()
            yield RUNNING
            if found == NOTHING:
                if not self.may_wait():
                    return True, seq
                yield RUNNING
                found = yield from self.wait(passed_on)
            if found == CHANNEL:
                return False, seq
            if found == AGAIN:
                continue
            packet = yield from self.accept(found)
            if packet is not None:
                seq += 1
                yield from self.serve_one(seq, packet[4:], pulled=True)
                self.slot.done = seq
                yield RUNNING

    def is_wanted(self):
        if self.head.wanted <= 0:
            return False
        yield RUNNING
        self.head.wanted -= 1
        if self.head.wanted >= 0:
            return True
        yield RUNNING
        self.head.wanted += 1
        yield RUNNING
        return False

    def look(self):
        if readable(self.channel):
            return CHANNEL
        count = len(self.listening)
        for i in range(count):
            at = 1 + (self.last_served + i) % count
            if readable(self.listening[at - 1]):
                self.last_served = at
                return at
        return NOTHING

    def may_wait(self):
        at_door = (self.waiting.word & self.door.word).bit_count()
        return not any(one.awake for one in self.siblings) and at_door < self.head.waiters

    def wait(self, passed_on):
        if not self.joined:
            for listener in self.listening:
                self.epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
                yield RUNNING
            self.joined = True
            self.door.set(self.number)
            yield RUNNING
            self.head.arrangements += 1
            yield RUNNING
        self.waiting.set(self.number)
        yield RUNNING
        if self.head.wanted > 0 or self.head.passed_on != passed_on:
            yield RUNNING
            return AGAIN if self.waiting.clear(self.number) else CHANNEL
        yield RUNNING
        self.sleep = Sleep(self.epoll)
        yield ASLEEP
        ((fd, _),), self.sleep = self.sleep.found, None
        found = [self.channel.fileno(), *(one.fileno() for one in self.listening)].index(fd)
        if not self.waiting.clear(self.number):
            if found != CHANNEL:
                yield RUNNING
                self.head.passed_on += 1
                yield RUNNING
                self.ring()
            yield RUNNING
            return CHANNEL
        yield RUNNING
        return found

    def leave_sockets(self):
        if self.joined:
            for listener in self.listening:
                self.epoll.unregister(listener)
            self.joined = False
            self.door.clear(self.number)

    def accept(self, at):
        """The packet of the next connection, which becomes the client; or None."""
        if not self.has_descriptors:
            self.leave_sockets()
            for listener in self.listening:
                listener.close()
            self.listening = []
            yield RUNNING
            self.say(RETURNED, 0)
            return None
        try:
            self.client, _ = self.listening[at - 1].accept()
        except BlockingIOError:  # another one was faster
            return None
        self.ours = True
        yield RUNNING
        self.head.last_id += 1
        number = self.head.last_id
        yield RUNNING
        try:
            packet = self.client.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            packet = b""
        else:
            if not packet:  # a probe, or who has left
                self.part_with_client()
                return None
        yield RUNNING
        if len(packet) < 4 or packet[0] or len(packet) < 4 + int.from_bytes(packet[1:3], "little"):
            message = MESSAGE_HEAD.pack(HANDED, 0, 0, self.listener_numbers[at - 1], number, 0, 0, 0) + packet
            socket.send_fds(self.channel, [message], [self.client.fileno()])
            self.part_with_client()
            return None
        return packet

    def say(self, kind, seq):
        self.channel.send(MESSAGE_HEAD.pack(kind, 0, 0, seq, 0, 0, 0, 0))

    def say_idle(self, seq):
        self.leave_sockets()
        yield RUNNING
        self.slot.done = seq
        yield RUNNING
        self.finished.set(self.number)
        yield RUNNING
        if self.head.ring:
            yield RUNNING
            ring, self.head.ring = self.head.ring, 0
            if ring:
                yield RUNNING
                self.ring()

    def ring(self):
        os.eventfd_write(self.doorbell, 1)


# ---- the clients ----


class Client:
    """half: of its request, it sends the rest later. rubbish: what it sends is no request."""

    def __init__(self, bench, listener, number, half=False, rubbish=False):
        packet = build([("PATH_INFO", f"/{number}")]) if not rubbish else b"\x05\x00\x00\x00"
        self.number, self.rubbish = number, rubbish
        self.executed, self.lost, self.left, self.ended, self.answer = 0, False, False, False, b""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind("")  # the kernel chooses an address, so that a core can tell who it is
        self.address = self.socket.getsockname()
        self.socket.connect(bench.listeners[listener].getsockname())
        first = 7 if half else len(packet)
        self.socket.sendall(packet[:first])
        self.rest = packet[first:]

    def send_rest(self):
        with contextlib.suppress(OSError):  # its core has died
            self.socket.sendall(self.rest)
        self.rest = b""

    def leave(self):
        self.left = True
        self.socket.close()

    def has_all(self):
        """Whether nothing more will come for it."""
        while not (self.left or self.ended) and readable(self.socket):
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:  # its core has died, or it said what nobody has read
                piece = b""
            self.answer += piece
            self.ended = not piece
        return self.left or self.ended


# ---- the machine ----

# Which of those that there are: taken modulo their number, so that what is drawn doesn't depend on what has happened.
pick = st.integers(0, 11)
listener = st.integers(0, 1)
bursts = st.lists(st.tuples(pick, st.integers(1, 12)), max_size=3)


class Pulling(RuleBasedStateMachine):
    bench = None  # as long as it hasn't begun
    paused = False

    @initialize(
        processes=st.integers(1, 4),
        threads=st.integers(1, 2),
        most_waiting=st.integers(0, 4),
        sockets=st.integers(1, 2),
        started=st.booleans(),
    )
    def begin(self, processes, threads, most_waiting, sockets, started):
        self.directory = tempfile.TemporaryDirectory()
        self.bench = Bench(
            Path(self.directory.name),
            processes,
            threads,
            pull=True,
            most_waiting=most_waiting,
            names=("one.sock", "two.sock")[:sockets],
        )
        self.front, self.events, self.threads = self.bench.front, self.bench.events, threads
        self.clients, self.by_address = [], {}
        self.tick_due, self.meanwhile = False, []
        self.events.decision, self.freely = FREELY, True
        self.events.tick_wanted, self.events.decide_wakeups = self.tick_wanted, self.decide_wakeups
        self.events.request_refused = self.events.request_lost = self.events.descriptor_lost = self.something_happened
        self.cores = [self.make_core(number) for number in range(self.bench.cores)]
        if started:
            self.all_come_to_rest()

    def make_core(self, number):
        return SimulatedCore(self.bench, number, self.threads, self.execute, self.lose)

    # ---- what happens to requests ----

    def execute(self, address, variables):
        client = self.by_address[address]
        client.executed += 1
        assert client.executed == 1, f"request {client.number} is executed twice"
        assert variables.endswith(b"/%d" % client.number), "the descriptor of another client"

    def lose(self, address):
        self.by_address[address].lost = True

    # ---- the front's events: in the middle of its callback ----

    def tick_wanted(self):
        assert not self.tick_due, "a second tick beside the first"
        self.tick_due = True
        self.interrupt()

    def decide_wakeups(self, use, grinders, overdue):
        self.interrupt()
        return self.events.decision

    def something_happened(self, *what):
        self.interrupt()

    def interrupt(self):
        if self.meanwhile:
            self.some_core_goes_on(*self.meanwhile.pop(0))

    # ---- clients ----

    @rule(listener=listener)
    def a_client_connects(self, listener):
        self.connect(listener)

    @rule(listener=listener)
    def a_client_connects_with_half_a_request(self, listener):
        self.connect(listener, half=True)

    @rule(listener=listener)
    def a_client_connects_with_rubbish(self, listener):
        self.connect(listener, rubbish=True)

    def connect(self, listener, **what):
        client = Client(self.bench, listener % len(self.bench.listeners), len(self.clients), **what)
        self.clients.append(client)
        self.by_address[client.address] = client

    @rule(pick=pick)
    def a_client_sends_the_rest(self, pick):
        if halves := [client for client in self.clients if client.rest and not client.left]:
            halves[pick % len(halves)].send_rest()

    @rule(pick=pick)
    def a_client_leaves(self, pick):
        if present := [client for client in self.clients if not client.left]:
            present[pick % len(present)].leave()

    # ---- cores ----

    @rule(pick=pick, steps=st.integers(1, 8))
    def some_core_goes_on(self, pick, steps):
        if able := [core for core in self.cores if core.can_go_on()]:
            core = able[pick % len(able)]
            for _ in range(steps):
                if core.can_go_on():
                    core.go_on()

    @rule()
    def cores_go_on(self):
        """As far as they can without the master."""
        while able := [core for core in self.cores if core.can_go_on()]:
            for core in able:
                if core.can_go_on():
                    core.go_on()

    @rule(pick=pick)
    def a_request_ends(self, pick):
        if serving := [core for core in self.cores if core.state == SERVING]:
            serving[pick % len(serving)].end_request()

    @rule()
    def all_requests_end(self):
        """And the cores go on, without the master."""
        for core in self.cores:
            if core.state == SERVING:
                core.end_request()
        self.cores_go_on()

    @rule(paused=st.booleans())
    def no_request_is_begun_for_a_while(self, paused):
        self.front.suspend(paused)
        self.paused = paused

    @rule(pick=pick)
    def a_process_is_sent_away(self, pick):
        for core in self.process(pick):
            self.front.retire_core(core.number)

    @rule(pick=pick)
    def a_process_is_sent_away_if_it_is_idle(self, pick):
        self.send_away_if_idle(pick)

    def send_away_if_idle(self, pick):
        """As `cheaper` does. Whether it was idle."""
        process = self.process(pick)
        idle = self.front.retire_if_idle(process[0].number // self.threads)
        for core in process:
            core.condemned |= idle
        return idle

    @rule(pick=pick)
    def a_process_dies(self, pick):
        for core in self.process(pick):
            if core.state not in (GONE, ABSENT):
                core.die()

    @rule(pick=pick)
    def a_core_has_no_descriptor_left(self, pick):
        self.cores[pick % len(self.cores)].has_descriptors = False

    @rule(pick=pick, meanwhile=bursts)
    def the_master_learns_that_a_process_is_gone(self, pick, meanwhile):
        if self.is_gone(pick):
            for core in self.process(pick):
                self.interrupted(self.front.remove_core, meanwhile, core.number)
                core.state = ABSENT

    @rule(pick=pick)
    def a_worker_is_forked(self, pick):
        """In the place of one that is gone."""
        cores = self.process(pick)
        if all(core.state == ABSENT for core in cores):
            for core in cores:
                os.close(self.bench.worker_ends[core.number])
                ours, theirs = make_channel()
                self.front.add_core(core.number, ours, theirs)
                self.bench.worker_ends[core.number] = os.dup(theirs)
                self.cores[core.number] = self.make_core(core.number)

    def is_gone(self, pick):
        return all(core.state == GONE for core in self.process(pick))

    def process(self, pick):
        """The cores of one."""
        first = pick % (len(self.cores) // self.threads) * self.threads
        return self.cores[first : first + self.threads]

    # ---- the master ----

    @rule(meanwhile=bursts)
    def the_callback_runs(self, meanwhile):
        if readable(self.front.epoll_fd):
            self.interrupted(self.front.on_ready, meanwhile)

    @rule(meanwhile=bursts)
    def a_tick(self, meanwhile):
        if self.tick_due:
            self.tick_due = self.interrupted(self.front.tick, meanwhile)

    @rule(meanwhile=bursts)
    def a_second_has_passed(self, meanwhile):
        self.interrupted(self.front.look_again, meanwhile)

    def interrupted(self, method, meanwhile, *args):
        """Call the front; where it calls the events object, cores go on."""
        self.meanwhile = list(meanwhile)
        result = method(*args)
        self.meanwhile = []
        return result

    @rule(watch=st.booleans(), wake=st.integers(0, 2), rest=st.integers(0, 2))
    def the_decision_changes(self, watch, wake, rest):
        self.events.decision, self.freely = Decision(watch, wake, rest), False

    @rule()
    def what_is_not_begun_is_taken_back(self):
        for core in self.front.not_begun(0.0):
            self.front.take_back(core)

    # ---- what must hold ----

    def somebody_waits_in_vain(self):
        return not self.paused and self.front.waiting > 0 and any(core.is_free() for core in self.cores)

    def a_death_is_to_be_noticed(self):
        return any(self.is_gone(process) for process in range(len(self.cores) // self.threads))

    @invariant()
    def a_free_core_will_be_woken(self):
        if self.bench is None or not self.somebody_waits_in_vain():
            return
        seconds = 0.0 if self.freely else TIMER_S
        assert self.something_can_happen() or readable(self.front.epoll_fd, seconds), f"somebody waits in vain: {self}"

    def something_can_happen(self):
        return self.a_death_is_to_be_noticed() or any(core.can_go_on() for core in self.cores)

    @rule()
    def all_come_to_rest(self):
        """All do what they can do; only requests don't end, and there is no tick."""
        decision, self.events.decision = self.events.decision, FREELY
        for _ in range(ROUNDS):
            self.a_free_core_will_be_woken()
            if not self.all_go_on() and not self.somebody_waits_in_vain():
                break
        assert not self.somebody_waits_in_vain(), f"somebody waits in vain, whatever the front does: {self}"
        self.events.decision = decision

    def all_go_on(self):
        """Whether there was anything to do."""
        moved = self.something_can_happen()
        self.cores_go_on()
        for process in range(len(self.cores) // self.threads):
            self.the_master_learns_that_a_process_is_gone(process, [])
        if readable(self.front.epoll_fd):
            moved = True
            self.the_callback_runs([])
        return moved

    def __repr__(self):
        cores = [f"{core.number}: {core.state}" for core in self.cores]
        return f"{self.front.waiting} waiting; {self.front.parked} parked; {cores}; {self.events.decision}"

    def teardown(self):
        if self.bench is None:
            return
        try:
            if sys.exc_info()[0] is None:  # else something was found already
                self.everybody_is_served()
        finally:
            self.close()

    def everybody_is_served(self):
        self.no_request_is_begun_for_a_while(False)
        for client in self.clients:
            if client.rest and not client.left:
                client.send_rest()
        self.events.decision = FREELY
        deadline = time.monotonic() + 20
        while not all(client.has_all() for client in self.clients):
            self.all_come_to_rest()
            for core in self.cores:
                self.a_worker_is_forked(core.number)
                if self.cores[core.number].state == SERVING:
                    self.cores[core.number].end_request()
            self.a_tick([])
            assert time.monotonic() < deadline, f"not all are served: {self}"
        for client in self.clients:
            if not client.left and not client.lost and not client.rubbish:
                assert client.executed == 1, f"request {client.number} was dropped"
                assert client.answer == b"answer to %d" % client.number

    def close(self):
        for core in self.cores:
            if core.state not in (GONE, ABSENT):
                core.die()
        for client in self.clients:
            client.socket.close()
        for name in ("tick_wanted", "decide_wakeups", "request_refused", "request_lost", "descriptor_lost"):
            delattr(self.events, name)  # they hold us
        self.bench.close()
        self.directory.cleanup()


# ---- what it has found, and what it finds too rarely ----


@pytest.fixture
def pulling():
    """Machines for one test, with one socket and a core in each process."""
    made = []

    def make(processes=1, most_waiting=4, started=True):
        made.append(Pulling())
        made[-1].begin(processes, 1, most_waiting, 1, started)
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(core, predicate):
    while not predicate():
        assert core.can_go_on()
        core.go_on()


def test_a_core_goes_to_sleep_while_a_request_is_queued(pulling):
    """Between its looks at `wanted` and ours at the bits."""
    machine = queue_for_a_core_that_goes_to_sleep(pulling)
    machine.all_come_to_rest()
    machine.everybody_is_served()


def test_a_core_is_not_claimed_for_a_client_that_has_left(pulling):
    machine = queue_for_a_core_that_goes_to_sleep(pulling, leaving=True)
    machine.all_come_to_rest()
    machine.connect(0)
    machine.all_come_to_rest()
    machine.everybody_is_served()


def test_a_core_that_is_about_to_sleep_sees_that_it_is_wanted(pulling):
    machine = pulling()
    (core,) = machine.cores
    machine.connect(0, half=True)
    machine.all_come_to_rest()
    machine.connect(0)
    until(core, lambda: core.state == SERVING)
    core.end_request()
    looked = core.look
    core.look = lambda: looks.append(looked()) or looks[-1]
    looks = []
    until(core, lambda: NOTHING in looks)  # it has looked at `wanted` before
    machine.clients[0].send_rest()
    machine.the_callback_runs([])  # it is still awake, so the request is queued
    assert machine.front.waiting == 1
    machine.cores_go_on()
    machine.a_free_core_will_be_woken()
    machine.everybody_is_served()


def test_a_core_that_parks_rings_if_no_other_is_parked(pulling):
    machine = pulling(most_waiting=0)
    machine.connect(0)
    machine.the_callback_runs([])
    machine.cores_go_on()
    machine.all_requests_end()
    machine.connect(0)
    machine.a_free_core_will_be_woken()


def queue_for_a_core_that_goes_to_sleep(pulling, leaving=False):
    machine = pulling()
    (core,) = machine.cores
    machine.connect(0, half=True)
    machine.all_come_to_rest()
    machine.clients[0].send_rest()
    if leaving:
        machine.clients[0].leave()
    machine.connect(0, rubbish=True)  # which is what interrupts the callback
    until(core, lambda: core.client)
    until(core, lambda: not core.client)
    machine.the_callback_runs([(0, 20)])
    return machine


def test_what_a_worker_handed_over_before_its_death_is_served(pulling):
    machine = pulling()
    machine.connect(0, half=True)
    machine.cores_go_on()
    machine.a_process_dies(0)
    machine.the_master_learns_that_a_process_is_gone(0, [])
    machine.everybody_is_served()


def test_a_core_leaves_although_its_message_to_leave_was_read_back(pulling):
    """It took the request before that in the same moment."""
    machine = pulling(most_waiting=0)
    (core,) = machine.cores
    machine.connect(0)
    machine.the_callback_runs([])
    machine.a_process_is_sent_away(0)
    core.go_on()
    machine.what_is_not_begun_is_taken_back()
    until(core, lambda: core.state == SERVING)
    core.end_request()
    machine.cores_go_on()
    assert core.state == GONE


def test_connections_that_are_passed_on_together_are_taken(pulling):
    """Two cores are claimed in the moment in which connections wake them; two others sleep on."""
    machine = sleeping_in_the_order_of_claims(pulling, 4)
    for _ in range(2):
        machine.connect(0, half=True)
        machine.all_come_to_rest()
    machine.connect(0)
    machine.connect(0)
    assert [core.can_go_on() for core in machine.cores] == [False, False, True, True]
    machine.clients[0].send_rest()
    machine.clients[1].send_rest()
    machine.the_callback_runs([])
    machine.all_come_to_rest()


def test_a_connection_is_passed_on_while_the_callback_runs_anyway(pulling):
    """Between the core's arrangement and its ring."""
    machine = sleeping_in_the_order_of_claims(pulling, 2)
    core = machine.cores[1]
    machine.connect(0, half=True)
    machine.all_come_to_rest()
    machine.connect(0)
    machine.clients[0].send_rest()
    machine.the_callback_runs([])
    passed_on = core.head.passed_on
    until(core, lambda: core.head.passed_on > passed_on)
    machine.front.on_ready()
    machine.all_come_to_rest()


def test_a_core_dies_that_was_woken_for_a_connection(pulling):
    """The kernel has told nobody else of it. Another core sleeps, and none is parked."""
    machine = sleeping_in_the_order_of_claims(pulling, 3)
    machine.connect(0)
    machine.all_come_to_rest()  # one serves, so that the master doesn't watch for everything
    machine.connect(0)
    assert machine.cores[1].can_go_on()
    machine.a_process_dies(1)
    machine.the_master_learns_that_a_process_is_gone(1, [])
    machine.all_come_to_rest()


def test_a_core_that_was_woken_for_a_connection_has_no_descriptor_for_it(pulling):
    """Its report doesn't ring, since another core is parked."""
    machine = pulling(2, most_waiting=1, started=False)
    for core in machine.cores:
        core.go_on()
        machine.the_callback_runs([])
        until(core, lambda core=core: not core.can_go_on())
    machine.all_come_to_rest()
    machine.a_tick([])
    assert machine.front.parked == 1
    machine.connect(0)
    (core,) = [core for core in machine.cores if core.can_go_on()]
    machine.a_core_has_no_descriptor_left(core.number)
    until(core, lambda: machine.front.idle == 1 and readable(machine.front.epoll_fd))
    machine.the_callback_runs([])  # it has said so, and hasn't reported yet
    machine.all_come_to_rest()
    assert [core.state for core in machine.cores].count(SERVING) == 1


@pytest.mark.parametrize("ticks", [0, 1], ids=["", "a tick swallows the ring"])
def test_a_connection_is_passed_on_while_all_is_calm(pulling, ticks):
    """No timer runs then, and the only other core is parked."""
    machine = pulling(2, most_waiting=1)
    machine.the_decision_changes(watch=False, wake=1, rest=0)
    for served in range(2):
        machine.connect(0)
        while sum(core.state == SERVING for core in machine.cores) == served:
            machine.all_go_on()
    for core in machine.cores:
        core.end_request()
    machine.cores_go_on()
    while readable(machine.front.epoll_fd, TIMER_S):
        machine.all_go_on()
    machine.connect(0, half=True)
    machine.all_go_on()
    while readable(machine.front.epoll_fd):
        machine.all_go_on()
    assert sorted(core.state for core in machine.cores) == [ASLEEP, PARKED]
    machine.connect(0)
    machine.clients[2].send_rest()
    machine.the_callback_runs([])
    machine.cores_go_on()
    assert [core.state for core in machine.cores].count(SERVING) == 1
    for _ in range(ticks):
        machine.a_tick([])
    while machine.somebody_waits_in_vain():
        machine.a_free_core_will_be_woken()
        machine.all_go_on()
    machine.everybody_is_served()


def sleeping_in_the_order_of_claims(pulling, processes):
    """The master claims the last core first; now the kernel wakes it first, too."""
    machine = pulling(processes, started=False)
    for core in reversed(machine.cores):
        core.go_on()
        machine.the_callback_runs([])
        until(core, lambda core=core: core.state == ASLEEP)
    machine.all_come_to_rest()
    assert all(core.state == ASLEEP for core in machine.cores)
    return machine


TestPulling = Pulling.TestCase
TestPulling.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


# ---- cheaper: arrivals and scale-downs ----

ARRIVALS = 10_000


def test_arrivals_while_workers_come_and_go():
    """The policy and the overseer decide, at random moments; everything else happens in a random order as well. The
    machine's own checks see to the rest: nothing is lost, executed twice, or given to who was sent away."""
    chance = random.Random(20)
    machine = Pulling()
    processes = 4
    machine.begin(processes=lifecycle.slots_for(processes), threads=1, most_waiting=2, sockets=2, started=False)
    roster = Roster(machine, processes)
    happens = [
        (40, lambda: machine.connect(chance.randrange(2))),
        (40, lambda: machine.some_core_goes_on(chance.randrange(1000), chance.randrange(1, 8))),
        (40, lambda: machine.a_request_ends(chance.randrange(1000))),
        (30, lambda: machine.the_callback_runs([])),
        (10, machine.cores_go_on),
        (5, lambda: machine.a_tick([])),
        (3, roster.decide),
    ]
    things, weights = [what for _, what in happens], [weight for weight, _ in happens]
    arrived = 0
    try:
        while arrived < ARRIVALS:
            while len(machine.clients) < 100:
                chance.choices(things, weights)[0]()
                roster.notice()
            arrived += len(machine.clients)
            roster.serve_everybody()
        assert min(roster.started, roster.ended) > 100
    finally:
        machine.close()


class Roster:
    """scaler.py's part: the policy decides about what the front and the overseer say. Time is two minutes per decision:
    no end is too early, so none makes workers stay."""

    def __init__(self, machine, processes):
        self.machine, self.now = machine, 0.0
        self.settings = Cheaper(minimum=1, step=2, algorithm="backlog", overload=2)
        self.overseer = lifecycle.Overseer(
            Settings(processes=Processes(processes=processes), cheaper=Cheaper(minimum=1))
        )
        self.memory = policy.fresh(self.settings)
        self.ended = self.started = 0
        for core in machine.cores:  # nobody was forked yet
            core.die()
            machine.front.remove_core(core.number)
            core.state = ABSENT
        self.carry_out(self.overseer.start())
        self.tell(events.ZygoteLoaded(1))

    def tell(self, event):
        self.carry_out(self.overseer.handle(event, self.now))

    def carry_out(self, effects):
        for effect in effects:
            match effect:
                case events.Fork(slot):
                    self.machine.a_worker_is_forked(slot - 1)
                    self.started += 1
                    self.tell(events.Forked(slot, 1000 + slot, 0.5))
                    self.tell(events.WorkerReady(slot))
                case events.Retire(slot):
                    self.machine.front.retire_core(slot - 1)

    def decide(self):
        self.now += 120
        front, wanted = self.machine.front, self.overseer.wanted
        serving, coming = self.overseer.crew()
        sample = Sample(
            wanted=wanted,
            spawnable=self.overseer.processes - wanted,
            workers=serving + coming,
            coming=coming,
            busy=front.work()[2],
            free_cores=front.idle,
            threads=1,
            busy_seconds=0.0,
            core_seconds=0.0,
            served=0,
            waiting=front.waiting,
        )
        decision, self.memory = policy.decide(self.settings, sample, room.NOTHING_HELD, self.memory, self.now)
        if decision.change > 0:
            self.tell(events.MoreWanted(decision.change))
        for _ in range(-decision.change):
            self.end_one()

    def end_one(self):
        for slot in self.overseer.spare():
            if self.machine.send_away_if_idle(slot - 1):
                self.ended += 1
                self.tell(events.Cheaped(slot))
                return

    def notice(self):
        """Those who have left are reported."""
        for core in self.machine.cores:
            if core.state == GONE:
                self.machine.front.remove_core(core.number)
                core.state = ABSENT
                self.tell(events.WorkerGone(core.number + 1, 0, 1))

    def serve_everybody(self):
        deadline = time.monotonic() + 20
        machine = self.machine
        while not all(client.has_all() for client in machine.clients):
            machine.all_requests_end()
            machine.the_callback_runs([])
            machine.a_tick([])
            self.notice()
            self.decide()
            assert time.monotonic() < deadline, f"not all are served: {machine}"
        for client in machine.clients:
            assert client.executed == 1, f"request {client.number} was dropped"
            assert client.answer == b"answer to %d" % client.number
            client.socket.close()
        machine.clients.clear()
        machine.by_address.clear()
