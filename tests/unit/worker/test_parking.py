"""When a worker keeps to one processor: decided from what was seen, and moved for real."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from sealane_worker import machine
from sealane_worker.parking import LONGEST_BAR, LOOK_SECONDS, TRIAL_SECONDS, Decision, Load, Parking

IDLE = Load(peak=0, rate=0.0, used=0.0, models=0.0, foreign=0.0, alone=True)
SINGLE = Load(peak=1, rate=1600.0, used=0.97, models=0.2, foreign=0.0, alone=True)
MANY = Load(peak=8, rate=2100.0, used=0.98, models=0.2, foreign=0.0, alone=True)


class Course:
    """Looks one after another, a tenth of a second apart."""

    def __init__(self) -> None:
        self.decision = Decision()
        self.now = 0.0

    def go(self, seconds: float, parked: Load, spread: Load | None = None) -> list[bool]:
        """What is decided while that is seen, parked and spread."""
        answers = []
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.now += LOOK_SECONDS
            answers.append(self.decision.look(parked if self.decision.parked else spread or parked, self.now))
        return answers


def test_an_idle_worker_is_parked_and_single_calls_leave_it_there() -> None:
    course = Course()
    assert all(course.go(1.0, IDLE))
    assert all(course.go(20.0, SINGLE))


def test_a_light_model_under_many_callers_is_parked_most_of_the_time() -> None:
    course = Course()
    course.go(1.0, IDLE)
    answers = course.go(60.0, MANY, Load(8, 1800.0, 1.3, 0.3, 0.0, True))
    assert not all(answers), "it was tried"
    assert sum(answers) > 0.8 * len(answers), "and not found better; tried ever more seldom"


def test_a_model_that_computes_for_several_callers_is_spread_at_once_and_stays_so() -> None:
    course = Course()
    course.go(1.0, IDLE)
    heavy = Load(peak=4, rate=500.0, used=1.0, models=0.8, foreign=0.0, alone=True)
    assert not any(course.go(30.0, heavy, Load(4, 950.0, 1.9, 1.6, 0.0, True)))
    assert all(course.go(5.0, IDLE)[30:]), "until it has nothing to do"


def test_a_model_that_computes_for_one_caller_gains_nothing_by_more_processors() -> None:
    course = Course()
    course.go(1.0, IDLE)
    assert all(course.go(5.0, Load(peak=1, rate=300.0, used=1.0, models=0.9, foreign=0.0, alone=True)))


def test_a_front_that_answers_more_on_all_processors_gets_them() -> None:
    course = Course()
    course.go(1.0, IDLE)
    answers = course.go(30.0, MANY, Load(8, 3000.0, 1.6, 0.4, 0.0, True))
    assert not any(answers[30:])


def test_somebody_elses_work_ends_it_for_ever_longer() -> None:
    course = Course()
    course.go(1.0, IDLE)
    crowded = Load(peak=1, rate=900.0, used=0.5, models=0.1, foreign=0.5, alone=True)
    calm = Load(peak=1, rate=900.0, used=0.5, models=0.1, foreign=0.0, alone=True)
    parked = [sum(course.go(20.0, crowded, calm)) for _ in range(3)]
    assert parked[0] > parked[2]
    assert parked[2] <= 10, "a look now and then"
    assert any(course.go(2 * LONGEST_BAR, calm)), "it comes back"


def test_others_on_its_processor_while_it_is_idle_do_not_matter() -> None:
    course = Course()
    course.go(1.0, IDLE)
    assert all(course.go(5.0, Load(0, 0.0, 0.0, 0.0, 0.9, True)))


def test_a_model_of_several_threads_is_never_parked() -> None:
    course = Course()
    assert not any(course.go(5.0, Load(0, 0.0, 0.0, 0.0, 0.0, False)))
    course.go(TRIAL_SECONDS, IDLE)
    assert not any(course.go(1.0, Load(1, 10.0, 0.9, 0.8, 0.0, False)))


@pytest.mark.skipif(len(machine.processors()) < 2, reason="this machine has one processor")
def test_every_thread_of_the_worker_and_its_models_is_moved_and_moved_back() -> None:
    everywhere = set(machine.processors())
    idle = threading.Event()
    thread = threading.Thread(target=idle.wait, daemon=True)
    thread.start()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as model:
        parking = Parking(lambda: (0, 0), lambda: ([model.pid], True))
        parking.start()
        try:
            _until(lambda: all(len(_where(task)) == 1 for task in (thread.native_id, model.pid)))
            assert parking.parked
            assert _where(thread.native_id) == _where(model.pid)
        finally:
            parking.stop()
        assert _where(thread.native_id) == _where(model.pid) == everywhere
        assert os.sched_getaffinity(0) == everywhere
        model.communicate(b"\n")
    idle.set()


def _where(task: int | None) -> set[int]:
    assert task is not None
    return os.sched_getaffinity(task)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "did not come true within 10 s"
        time.sleep(0.02)
