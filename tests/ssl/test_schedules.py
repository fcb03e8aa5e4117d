import math

import pytest

from vit_pytorch.ssl.schedules import CosineSchedule, LinearSchedule, as_schedule


def test_linear_schedule_rises_and_stays():
    warmup = LinearSchedule(0.04, 0.07, 30)
    assert [warmup(step) for step in (0, 10, 30, 99)] == pytest.approx([0.04, 0.05, 0.07, 0.07])


def test_cosine_schedule_rises_and_stays():
    momentum = CosineSchedule(0.996, 1.0, 100)
    quarter = 1 - 0.004 * (1 + math.cos(math.pi / 4)) / 2
    assert [momentum(step) for step in (0, 25, 50, 100, 101)] == pytest.approx(
        [0.996, quarter, 0.998, 1.0, 1.0], abs=1e-9
    )


def test_a_number_stays():
    assert as_schedule(0.9)(7) == 0.9
    assert as_schedule(CosineSchedule(1.0, 0.0, 2))(1) == pytest.approx(0.5)


def test_schedules_have_a_step():
    for schedule in (LinearSchedule, CosineSchedule):
        with pytest.raises(ValueError, match="at least 1 step, got 0"):
            schedule(0.0, 1.0, 0)
