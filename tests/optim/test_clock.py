import pytest

from golf_lightning.errors import GolfError
from golf_lightning.optim.clock import TrainingClock


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(time: Time) -> TrainingClock:
    return TrainingClock(600.0, 13.0, time=time)


def test_stands_until_started(clock: TrainingClock, time: Time) -> None:
    time.now += 5
    assert clock.elapsed() == 0.0
    assert not clock.running


def test_counts_only_while_running(clock: TrainingClock, time: Time) -> None:
    clock.start()
    time.now += 5
    clock.pause()
    time.now += 1000
    clock.resume()
    time.now += 2
    assert clock.elapsed() == 7.0


def test_pausing_or_resuming_twice_changes_nothing(clock: TrainingClock, time: Time) -> None:
    clock.start()
    time.now += 5
    clock.resume()
    time.now += 1
    clock.pause()
    clock.pause()
    assert clock.elapsed() == 6.0


def test_start_begins_at_zero(clock: TrainingClock, time: Time) -> None:
    clock.start()
    time.now += 5
    clock.start()
    assert clock.elapsed() == 0.0


def test_fraction_is_of_the_budget_less_the_reserve(clock: TrainingClock, time: Time) -> None:
    clock.start()
    time.now += 58.7
    assert clock.train_s == 587.0
    assert clock.fraction() == pytest.approx(0.1)
    assert clock.fraction(293.5) == pytest.approx(0.5)
    assert clock.fraction(9999.0) == 1.0


@pytest.mark.parametrize("running", [True, False])
def test_saved_seconds_are_taken_over(clock: TrainingClock, time: Time, running: bool) -> None:
    clock.start()
    time.now += 42
    other = TrainingClock(600.0, time=time)
    if running:
        other.start()
        time.now += 3
    other.load_state_dict({**clock.state_dict(), "elapsed_s": 42.0})
    time.now += 1
    assert other.elapsed() == (43.0 if running else 42.0)


def test_state_holds_the_seconds(clock: TrainingClock, time: Time) -> None:
    clock.start()
    time.now += 42
    assert clock.state_dict() == {"elapsed_s": 42.0}


def test_runs_on_real_time_by_default() -> None:
    clock = TrainingClock(600.0)
    clock.start()
    assert 0 <= clock.elapsed() < 60


@pytest.mark.parametrize("budget, reserve", [(0.0, 0.0), (float("nan"), 0.0), (10.0, 10.0), (10.0, -1.0)])
def test_budgets_that_leave_no_training_are_refused(budget: float, reserve: float) -> None:
    with pytest.raises(GolfError):
        TrainingClock(budget, reserve)
