import pytest

from golf_lightning.compression.budget import BudgetConfig, ByteBudget, OverBudget, measure_budget
from golf_lightning.errors import GolfError


def test_counts_the_file_on_disk_and_the_code(tmp_path):
    path = tmp_path / "artifact.golf"
    path.write_bytes(bytes(1234))
    budget = measure_budget(path, BudgetConfig(limit_bytes=30_000, code_bytes=26_505))
    assert (budget.artifact_bytes, budget.total_bytes, budget.headroom_bytes) == (1234, 27_739, 2_261)


def test_the_limit_is_decimal():
    assert BudgetConfig().limit_bytes == 16 * 10**6


def test_exactly_the_limit_is_allowed():
    ByteBudget(15_973_495, 26_505, 16_000_000).require()


def test_over_the_limit_says_how_many_bytes_too_many():
    with pytest.raises(OverBudget, match=r" 1,506 bytes over the limit of 16,000,000; the files are kept"):
        ByteBudget(15_975_001, 26_505, 16_000_000).require()


def test_over_budget_is_an_error_the_user_reads():
    assert issubclass(OverBudget, GolfError)


@pytest.mark.parametrize("values", [{"code_bytes": -1}, {"limit_bytes": 100, "code_bytes": 100}])
def test_refuses_a_budget_that_cannot_hold_a_model(values):
    with pytest.raises(GolfError, match="less than the limit"):
        BudgetConfig(**values)
