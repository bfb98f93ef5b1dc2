"""Calls of reward functions that do not end: each is ended, whatever it does, and the message names it."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest
import torch
from forked import run_program

from trl_dapo import RewardTimeoutError
from trl_dapo.guards.reward_deadline import RewardWatch
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.streaming.group_grader import GroupGrader
from trl_dapo.streaming.streamed_group import StreamedGroup


FOR_EVER = 10**6
HANDLERS = ("SIGURG", "SIGVTALRM", "SIGALRM")


def sleeps():
    time.sleep(FOR_EVER)


def computes():
    while True:
        pass


def backtracks():
    # Holds the interpreter's lock all the time, so that no other thread can do anything.
    re.match(r"(a+)+$", "a" * 100 + "b")


def waits_for_a_lock():
    threading.Event().wait()


def waits_for_a_process():
    with subprocess.Popen(["sleep", str(FOR_EVER)]) as process:
        try:
            process.wait()
        finally:
            process.kill()


def swallows_exceptions():
    while True:
        try:
            time.sleep(FOR_EVER)
        except Exception:
            continue


def waits_for_a_loop():
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(FOR_EVER), loop).result()


def call(watch, function, *args):
    with watch.computation("the rewards of 8 completions"), watch.call(function.__name__):
        return function(*args)


def handlers():
    return [signal.getsignal(getattr(signal, name)) for name in HANDLERS], signal.getitimer(signal.ITIMER_VIRTUAL)[0]


@pytest.mark.parametrize(
    "function",
    [sleeps, computes, backtracks, waits_for_a_lock, waits_for_a_process, swallows_exceptions, waits_for_a_loop],
)
def test_function_that_hangs_is_interrupted_and_named(function, capfd):
    before = handlers()
    with pytest.raises(RewardTimeoutError) as caught:
        call(RewardWatch(0.2), function)
    assert (caught.value.function, caught.value.seconds) == (function.__name__, 0.2)
    assert f"The reward function {function.__name__} did not return within reward_timeout=0.2 seconds" in str(
        caught.value
    )
    # The traceback says where it was, and so does what is printed before the stacks of all threads.
    assert function.__name__ in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    printed = capfd.readouterr().err
    assert printed.count(str(caught.value)) == 1
    where, _, all_threads = printed.partition("What all threads are doing:")
    assert f" in {function.__name__}" in where.partition("Where it is, most recent call first:")[2]
    assert "most recent call first" in all_threads
    # Nothing is left that could interrupt anything else.
    assert handlers() == before


def test_function_that_returns_in_time_is_left_alone():
    before = handlers()
    watch = RewardWatch(3600.0)
    assert call(watch, lambda: [1.0, 0.0]) == [1.0, 0.0]
    with pytest.raises(ZeroDivisionError):
        call(watch, lambda: 1 / 0)
    assert handlers() == before
    assert "reward-watch" not in [thread.name for thread in threading.enumerate() if not thread.daemon]


def test_functions_have_their_time_each():
    # Together they take longer than one of them may.
    watch = RewardWatch(2.0)
    with watch.computation(""):
        for _ in range(6):
            with watch.call("patient"):
                time.sleep(0.5)


def test_reward_that_comes_too_late_is_no_reward(capfd):
    def swallows_everything_once():
        try:
            time.sleep(FOR_EVER)
        except BaseException:
            return [1.0]

    with pytest.raises(RewardTimeoutError, match="swallows_everything_once"):
        call(RewardWatch(0.2), swallows_everything_once)


def test_no_limit_watches_nothing(monkeypatch):
    monkeypatch.setattr(threading, "Thread", None)
    assert call(RewardWatch(None), lambda: 3) == 3


def group():
    return StreamedGroup.begin(Draw(0, 0), {}, [1], 0, num_generations=2)


@pytest.mark.fault(
    "a reward function hangs", 'grading thread of `refill="stream"`', "`RewardTimeoutError` in the main thread"
)
@pytest.mark.parametrize("function", [sleeps, computes])
def test_function_that_hangs_in_the_grading_thread_is_told_to_the_main_thread(function, capfd):
    watch = RewardWatch(0.2, grace_seconds=0.5)
    grader = GroupGrader(lambda groups: call(watch, function), torch.device("cpu"))
    watch.tell = grader.abandon
    grader.submit(group())
    with pytest.raises(RewardTimeoutError, match=function.__name__):
        grader.drain()
    # The thread that hangs is one that the process does not wait for, and the next groups get another.
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "grading")
    grader.grade = lambda groups: None
    grader.submit(group())
    assert len(grader.drain()) == 1
    assert function.__name__ in capfd.readouterr().err
    # It goes on, although a thread of it never comes back: longer than one that cannot be interrupted would.
    time.sleep(0.2 + 2 * 0.5 + 1.0)


PROGRAM = """
import ctypes, sys, threading, time
from trl_dapo.guards.reward_deadline import RewardWatch

def swallows_everything():
    while True:
        try:
            time.sleep(10**6)
        except BaseException:
            continue

def deadlocks_in_c(library=ctypes.CDLL(None)):
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)

def keeps_the_lock():
    # As before, but without letting other threads of the interpreter run.
    deadlocks_in_c(ctypes.PyDLL(None))

def run():
    watch = RewardWatch(0.5, grace_seconds=1.0)
    with watch.computation("the rewards of 8 completions"), watch.call(sys.argv[1]):
        globals()[sys.argv[1]]()

if sys.argv[2] == "main":
    run()
else:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
print("went on")
"""


@pytest.mark.fault(
    "a reward function hangs in C", "grading", "the process ends with its stacks, 30 to 60 s after `reward_timeout`"
)
@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of zeros is one of Linux")
@pytest.mark.parametrize("thread", ["main", "another"])
@pytest.mark.parametrize("function", ["swallows_everything", "deadlocks_in_c", "keeps_the_lock"])
def test_function_that_cannot_be_interrupted_ends_its_process(tmp_path, function, thread):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    status, printed = run_program(program, [function, thread], tmp_path / "printed.txt", max_seconds=120)
    assert status == 1, printed
    assert "went on" not in printed
    assert f"in {function}" in printed
    if function == "keeps_the_lock":
        # No Python code can run any more: what ends the process is a thread in C, which knows no names.
        assert "Timeout (0:00:02.500000)!" in printed
    else:
        assert f"{function} cannot be interrupted, so that this process ends here." in printed
        assert "the rewards of 8 completions" in printed
