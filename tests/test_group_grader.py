"""Grading off the main thread."""

import threading
import time
import weakref

import pytest
import torch

from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.streaming.group_grader import GroupGrader
from trl_dapo.streaming.streamed_group import StreamedGroup


def group(position):
    return StreamedGroup.begin(Draw(position, position), {}, [1], 0, num_generations=2)


def make_grader(grade):
    return GroupGrader(grade, torch.device("cpu"))


def test_groups_that_wait_together_are_graded_together_and_in_order():
    go_on, calls, threads = threading.Event(), [], set()

    def grade(groups):
        threads.add(threading.current_thread())
        calls.append([group.draw.position for group in groups])
        assert go_on.wait(30)

    grader = make_grader(grade)
    for position in (3, 1, 2):
        grader.submit(group(position))
    assert grader.poll() == []  # nothing is done, and nobody waits
    assert not grader.is_idle
    go_on.set()
    assert [group.draw.position for group in grader.drain()] == [3, 1, 2]
    assert calls == [[3], [1, 2]]
    assert grader.is_idle
    (thread,) = threads
    assert thread is not threading.main_thread()
    assert grader.seconds_waited >= 0
    assert grader.seconds > 0


def test_what_a_reward_function_raises_is_raised_when_asked_for():
    def grade(groups):
        raise ZeroDivisionError("no gold")

    grader = make_grader(grade)
    grader.submit(group(0))
    with pytest.raises(ZeroDivisionError, match="no gold"):
        grader.drain()
    assert grader.is_idle
    # And it grades on.
    grader.grade = lambda groups: None
    grader.submit(group(1))
    assert [group.draw.position for group in grader.drain()] == [1]


def test_group_is_gone_when_whoever_asked_for_it_has_dropped_it():
    class Group:
        pass

    grader = GroupGrader(lambda groups: None, torch.device("cpu"))
    grader.submit(Group())
    (group,) = grader.drain()
    left = weakref.ref(group)
    del group
    deadline = time.monotonic() + 30
    while left() is not None and time.monotonic() < deadline:
        time.sleep(0.01)  # the thread may have to end its call
    assert left() is None
