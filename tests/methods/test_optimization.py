import math

import pytest

from lightning_rag.errors import UserError
from lightning_rag.methods.optimization import OptimizerConfig

# Rates of RUIE's retriever in 1e-6, 400 of 6000 steps of warm-up: DeepSpeed's WarmupDecayLR.
STEPS = (0, 1, 10, 100, 200, 399, 400, 3000, 6000)
RATES = (0, 3.471, 12.007, 23.108, 26.554, 30, 30, 16.071, 0)


def test_the_logarithmic_warm_up_is_that_of_deepspeed():
    config = OptimizerConfig(warmup=400 / 6000, warmup_shape="logarithmic", schedule="linear")
    got = [round(30 * config.factor(step, 6000), 3) for step in STEPS]
    assert got == pytest.approx(RATES, abs=1e-9)


def test_the_reward_models_warm_up():
    config = OptimizerConfig(warmup=400 / 3000, warmup_shape="logarithmic")
    assert config.factor(10, 3000) == pytest.approx(0.40, abs=5e-3)
    assert config.factor(100, 3000) == pytest.approx(0.77, abs=5e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_ups_differ_while_the_rates_rise_and_nowhere_else(schedule):
    linear = OptimizerConfig(warmup=0.25, schedule=schedule)
    steep = OptimizerConfig(warmup=0.25, warmup_shape="logarithmic", schedule=schedule)
    for step in range(10):
        assert linear.factor(step, 40) == pytest.approx((step + 1) / 10)
        assert steep.factor(step, 40) == pytest.approx(math.log(step + 1) / math.log(10))
    for step in range(10, 45):
        assert steep.factor(step, 40) == linear.factor(step, 40)


def test_a_single_step_of_warm_up():
    assert OptimizerConfig(warmup=0.05).factor(0, 20) == 1
    steep = OptimizerConfig(warmup=0.05, warmup_shape="logarithmic")
    assert steep.factor(0, 20) == 0
    assert steep.factor(1, 20) == 1
    assert OptimizerConfig(warmup=0, warmup_shape="logarithmic").factor(0, 20) == 1


def test_the_rates_after_the_warm_up():
    at = {"linear": (0.5, 0.0, 0.0), "cosine": (0.5, 0.0, 0.0), "constant": (1.0, 1.0, 1.0)}
    for schedule, want in at.items():
        config = OptimizerConfig(warmup=0.2, schedule=schedule)
        assert config.factor(20, 100) == 1
        assert [config.factor(s, 100) for s in (60, 100, 150)] == pytest.approx(want)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"warmup": 1.0}, "optimizer.warmup is 1.0; legal: 0 to less than 1"),
        ({"warmup": -0.1}, "optimizer.warmup is -0.1"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay is -1.0; legal: 0 or more"),
        (
            {"learning_rates": {"reward": 0.0}},
            "optimizer.learning_rates.reward is 0.0; legal",
        ),
    ],
)
def test_bad_input(given, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**given)
