import math

import pytest
import torch
from small_gpt import CONFIG

from golf_lightning.compression import rate
from golf_lightning.compression.banks import quantize_state
from golf_lightning.compression.hessians import Calibration, collect_hessians
from golf_lightning.compression.quantize import QuantizationConfig
from golf_lightning.compression.rate import Steps, fill_budget, normal_bits, plan_steps
from golf_lightning.compression.sensitivity import collect_sensitivities
from golf_lightning.model.config import matrix_inputs


def steps_of(rows: int = 4000, columns: int = 512, trellis: bool = False) -> Steps:
    generator = torch.Generator().manual_seed(0)
    log2 = torch.randint(-16, 16, (1, rows), generator=generator) / 8
    return Steps(
        log2_NR={"up": log2},
        floor_NR={"up": torch.full((1, rows), 2.0**-10)},
        spread_NR={"up": torch.ones(1, rows)},
        columns={"up": columns},
        trellis=trellis,
    )


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 1.999, 2.001, 5.0, 60.0])
def test_bits_of_a_rounded_normal(ratio):
    numbers = torch.arange(-800, 801, dtype=torch.float64)
    p = torch.special.ndtr((numbers + 0.5) / ratio) - torch.special.ndtr((numbers - 0.5) / ratio)
    entropy = -torch.special.xlogy(p, p).sum() / math.log(2)
    assert float(normal_bits(torch.tensor(ratio))) == pytest.approx(float(entropy), abs=1e-3)


@pytest.mark.parametrize("excess", [0.97, 1.0, 1.03])
@pytest.mark.parametrize("beside", [0, 50_000, 200_000])
def test_the_file_ends_just_under_the_budget(excess, beside):
    steps, budget, sizes = steps_of(), 900_000, []

    def make(scales):
        ratio = 1.0 / scales["up"].float()
        sizes.append(int(excess * 512 * float(normal_bits(ratio).sum()) / 8) + beside)
        return sizes[-1]

    tries = fill_budget(steps, budget, make)
    assert budget - rate.SLACK < sizes[-1] <= budget
    assert tries == len(sizes) <= 3


def test_a_small_model_gets_its_finest_steps():
    steps, made = steps_of(rows=4), []

    def make(scales):
        made.append(scales["up"])
        return 10_000

    assert fill_budget(steps, 10**6, make) == 1
    assert torch.equal(made[0].float(), steps.floor_NR["up"])


def test_a_budget_that_nothing_fits_gets_the_coarsest_steps():
    steps, made = steps_of(rows=40), []

    def make(scales):
        made.append(scales["up"])
        return 60_000

    fill_budget(steps, 50_000, make)
    assert (made[-1] == 1.0).all()


def test_steps_follow_the_curvature(model, batches):
    """A matrix four times as sensitive gets steps half as wide; inside a matrix rows follow halfway."""
    calibration = collect_hessians(model, batches, count=3)
    ones = {
        name: torch.ones(len(sites), getattr(model, name).shape[-2]) for name, sites in matrix_inputs(CONFIG).items()
    }
    more = {name: value.clone() for name, value in ones.items()}
    more["up"][1] = 4.0
    more["down"][0, 0] = 16.0

    def plan(sensitivities):
        return plan_steps(model.state_dict(), calibration, sensitivities, CONFIG, damping=0.01, trellis=True)

    base, changed = plan(ones), plan(more)
    assert torch.equal(changed.log2_NR["up"][1], base.log2_NR["up"][1] - 1)
    assert torch.equal(changed.log2_NR["up"][0], base.log2_NR["up"][0])
    moved = changed.log2_NR["down"][0] - base.log2_NR["down"][0]
    assert (moved[0] - moved[1:] + 1).abs().max() <= 1 / 8


def test_a_row_that_nothing_reaches_keeps_its_shape(model, batches):
    """An unused piece has no sensitivity, and must still not become noise that outweighs the pieces in use."""
    calibration = collect_hessians(model, batches, count=3)
    sensitivities = collect_sensitivities(model, batches, calibration, count=3)
    for sensitivity_NR in sensitivities.values():
        sensitivity_NR[:, 1::3] *= 1e-12
    steps = plan_steps(model.state_dict(), calibration, sensitivities, CONFIG, damping=0.01, trellis=True)
    for log2_c in (steps.finest() + 1, steps.finest() + 5, steps.finest() + rate.OCTAVES):
        scales = steps.at(log2_c)
        state, _ = quantize_state(model.state_dict(), calibration.hessians, CONFIG, QuantizationConfig(), scales=scales)
        for name, back in state.state_dict().items():
            if name in scales:
                weight = getattr(model, name).detach()
                assert ((back - weight).square().mean(-1) < 3 * weight.square().mean(-1)).all(), name


def test_more_calibration_data_change_no_step(model, batches):
    calibration = collect_hessians(model, batches, count=3)
    twice = Calibration({site: 2 * h for site, h in calibration.hessians.items()}, 2 * calibration.tokens)
    ones = {
        name: torch.ones(len(sites), getattr(model, name).shape[-2]) for name, sites in matrix_inputs(CONFIG).items()
    }
    plans = [
        plan_steps(model.state_dict(), found, ones, CONFIG, damping=0.01, trellis=True)
        for found in (calibration, twice)
    ]
    assert all(torch.equal(plans[0].log2_NR[name], plans[1].log2_NR[name]) for name in ones)


def test_no_code_at_the_finest_steps_exceeds_eight_bits(model, batches):
    calibration = collect_hessians(model, batches, count=3)
    ones = {
        name: torch.ones(len(sites), getattr(model, name).shape[-2]) for name, sites in matrix_inputs(CONFIG).items()
    }
    steps = plan_steps(model.state_dict(), calibration, ones, CONFIG, damping=0.01, trellis=True)
    for name, scale in steps.at(steps.finest()).items():
        largest = getattr(model, name).detach().abs().amax(-1).view(scale.shape) / scale.float()
        assert largest.max() <= 127.5, name
