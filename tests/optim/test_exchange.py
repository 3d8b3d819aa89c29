import pytest
import torch

from golf_lightning.optim.exchange import LAG, SLOTS, StepExchange


def step(exchange: StepExchange) -> None:
    slots = torch.empty(SLOTS)
    exchange.write(slots, rank=0)
    exchange.read(slots)


def test_values_come_back_two_steps_later() -> None:
    exchange = StepExchange()
    exchange.reset(30.0)
    seen = []
    for k in range(6):
        seen.append(exchange.agreed())
        exchange.send(40.0 + k, signal=15 if k == 1 else 0)
        step(exchange)
    assert LAG == 2
    assert seen == [(30.0, 0), (30.0, 0), (40.0, 0), (41.0, 15), (42.0, 0), (43.0, 0)]


def test_asking_twice_gives_the_same() -> None:
    exchange = StepExchange()
    for k in range(3):
        exchange.send(float(k))
        step(exchange)
    assert exchange.agreed() == exchange.agreed() == (1.0, 0)


def test_signal_travels_once_and_seconds_stay() -> None:
    exchange = StepExchange()
    exchange.send(5.0, signal=2)
    seen = []
    for _ in range(4):
        step(exchange)
        seen.append(exchange.agreed())
    assert seen[1:] == [(5.0, 2), (5.0, 0), (5.0, 0)]


def test_only_rank_zero_keeps_the_time() -> None:
    exchange, slots = StepExchange(), torch.empty(SLOTS)
    exchange.send(5.0, signal=2)
    exchange.write(slots, rank=1)
    assert slots[0] == 0.0
    assert slots[1 + 2] == 1.0


def test_the_highest_signal_of_all_ranks_wins() -> None:
    exchange, slots = StepExchange(), torch.empty(SLOTS)
    exchange.send(5.0, signal=2)
    exchange.write(slots, rank=0)
    # Two other ranks sent 15, one of them 2 as well.
    slots[1 + 15] += 2
    slots[1 + 2] += 1
    exchange.read(slots)
    step(exchange)
    assert exchange.agreed().signal == 15


def test_reset_forgets_what_is_under_way() -> None:
    exchange = StepExchange()
    exchange.send(5.0, signal=2)
    step(exchange)
    step(exchange)
    exchange.reset(7.0)
    assert exchange.agreed() == (7.0, 0)
    step(exchange)
    step(exchange)
    assert exchange.agreed() == (7.0, 0)


def test_numbers_without_a_slot_are_a_defect() -> None:
    with pytest.raises(AssertionError):
        StepExchange().send(0.0, signal=32)
