import numpy as np
import pytest
from scipy.stats import t

from annotate.stats.forecast import Forecast, forecast


def test_days_that_are_all_alike_leave_no_doubt():
    assert forecast([10, 10, 10, 10], 45) == Forecast(10.0, 4.5, 4.5, 4.5)


def test_the_range_is_that_of_students_t():
    days = np.array([8.0, 12.0, 10.0, 14.0, 6.0])
    low, high = t.interval(0.95, 4, loc=10, scale=days.std(ddof=1) / 5**0.5)
    found = forecast(days, 100)
    assert found is not None
    assert (found.rate, found.days) == (10.0, 10.0)
    assert (found.earliest, found.latest) == pytest.approx((100 / high, 100 / low))


def test_no_end_is_in_sight_where_the_rate_may_be_nothing():
    found = forecast([0, 0, 30], 100)
    assert found is not None
    assert (found.days, found.latest) == (10.0, None)


@pytest.mark.parametrize(("daily", "num_left"), [([5, 5], 10), ([0, 0, 0, 0], 10), ([5, 5, 5], 0), ([], 10)])
def test_there_is_none_without_days_work_or_anything_left(daily, num_left):
    assert forecast(daily, num_left) is None
