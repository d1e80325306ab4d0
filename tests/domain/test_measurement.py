from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.measurement import (
    HIGHER_IS_BETTER,
    IDENTICAL_DB,
    LOWER_IS_BETTER,
    METRICS,
    PRESETS,
    CaseQuality,
    Constraint,
    Coverage,
    Latency,
    Measurement,
    Requirement,
    aggregate,
    check_aggregate,
    psnr_of_mse,
)
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.workload import Case

GOOD = {
    "psnr_db": 40.0, "worst_frame_psnr_db": 38.0, "ssim": 0.99, "cosine_similarity": 0.999, "mae": 1.0, "mse": 6.5025,
    "rmse": 2.55, "max_abs": 20.0, "l2": 500.0, "relative_l2": 0.02,
}  # fmt: skip
BAD = {
    "psnr_db": 20.0, "worst_frame_psnr_db": 15.0, "ssim": 0.7, "cosine_similarity": 0.95, "mae": 14.0, "mse": 650.25,
    "rmse": 25.5, "max_abs": 200.0, "l2": 5000.0, "relative_l2": 0.3,
}  # fmt: skip


def quality(metrics: dict[str, float], prompt: str = "a") -> CaseQuality:
    return CaseQuality(Case(prompt, 0), metrics)


class TestPsnr:
    def test_known_values(self) -> None:
        assert psnr_of_mse(0.0) == IDENTICAL_DB
        assert psnr_of_mse(255.0**2) == 0.0
        assert psnr_of_mse(6.5025) == pytest.approx(40.0)

    @given(st.floats(min_value=0, max_value=255.0**2))
    def test_always_finite_and_bounded(self, mse: float) -> None:
        assert 0 <= psnr_of_mse(mse) <= IDENTICAL_DB

    @pytest.mark.parametrize("mse", [math.nan, math.inf])
    def test_what_is_no_number_is_refused(self, mse: float) -> None:
        with pytest.raises(ValueError, match="finite"):
            psnr_of_mse(mse)


class TestCaseQuality:
    @pytest.mark.parametrize("name", METRICS)
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_every_metric_is_finite(self, name: str, value: float) -> None:
        with pytest.raises(ValueError, match=f"metric {name}"):
            quality({**GOOD, name: value})

    @pytest.mark.parametrize("name", METRICS)
    def test_every_metric_is_there(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"metric {name}"):
            CaseQuality(Case("a", 0), {key: value for key, value in GOOD.items() if key != name})


class TestAggregate:
    @pytest.mark.parametrize("name", METRICS)
    def test_the_worst_is_the_worst(self, name: str) -> None:
        cases = [quality(GOOD), quality(BAD, "b"), quality(GOOD, "c")]
        assert aggregate(cases, name, "worst") == BAD[name]

    @pytest.mark.parametrize("name", [name for name in METRICS if name != "psnr_db"])
    def test_the_mean(self, name: str) -> None:
        assert aggregate([quality(GOOD), quality(BAD)], name, "mean") == pytest.approx((GOOD[name] + BAD[name]) / 2)

    def test_the_mean_of_psnr_is_that_of_the_squared_error(self) -> None:
        expected = psnr_of_mse((GOOD["mse"] + BAD["mse"]) / 2)
        assert aggregate([quality(GOOD), quality(BAD)], "psnr_db", "mean") == pytest.approx(expected)
        assert expected < (GOOD["psnr_db"] + BAD["psnr_db"]) / 2

    @given(st.lists(st.floats(0, 50), min_size=1, max_size=40), st.integers(1, 50))
    def test_of_a_quantile_at_most_so_many_percent_fall_short(self, values: list[float], percent: int) -> None:
        """For PSNR those below it, for the mean absolute error, of which less is better, those above; and no better
        case's value is one of which that holds."""
        for name, sign in (("psnr_db", 1), ("mae", -1)):
            found = aggregate([quality({**GOOD, name: value}) for value in values], name, f"p{percent}")
            worse = sorted(sign * value for value in values)

            def shorter(bound: float, worse: list[float] = worse) -> float:
                return sum(value < bound for value in worse) * 100 / len(worse)

            assert found in values and shorter(sign * found) <= percent
            assert all(shorter(value) > percent for value in worse if value > sign * found)

    def test_a_quantile_of_few_cases_is_the_worst(self) -> None:
        cases = [quality({**GOOD, "psnr_db": 30.0 + index}) for index in range(10)]
        assert aggregate(cases[:9], "psnr_db", "p10") == 30.0
        assert aggregate(cases, "psnr_db", "p10") == 31.0
        assert [aggregate(cases[:count], "psnr_db", "p25") for count in (1, 3, 4, 8)] == [30.0, 30.0, 31.0, 32.0]

    @pytest.mark.parametrize("how", ["worst", "mean", "p1", "p10", "p50"])
    def test_known_aggregates(self, how: str) -> None:
        assert check_aggregate(how) == how

    @pytest.mark.parametrize(
        "how", ["", "p", "p0", "p05", "p51", "p100", "p5.5", "p-1", "P10", "p10\n", "p\u0661", "median"]
    )
    def test_unknown_aggregates(self, how: str) -> None:
        with pytest.raises(UsageError, match="choose worst, mean, or p1 to p50"):
            check_aggregate(how)
        with pytest.raises(UsageError, match="aggregate"):
            Requirement((), how)

    @pytest.mark.parametrize("how", ["worst", "mean", "p50"])
    def test_an_iterator_counts_like_a_list(self, how: Any) -> None:
        cases = [quality(GOOD), quality(BAD)]
        assert aggregate(iter(cases), "psnr_db", how) == aggregate(cases, "psnr_db", how)


class TestLatency:
    def test_gain(self) -> None:
        assert Latency(0.75, "measured").gain == 0.25

    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    @pytest.mark.parametrize("name", ["relative", "seconds", "end_to_end_seconds"])
    def test_times_are_finite_and_above_0(self, name: str, value: float) -> None:
        with pytest.raises(ValueError, match=name):
            replace(Latency(1.0, "measured"), **{name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
    def test_spread_is_finite(self, value: float) -> None:
        with pytest.raises(ValueError, match="spread"):
            Latency(1.0, "measured", spread=value)


class TestConstraint:
    @pytest.mark.parametrize(
        ("text", "metric", "op", "value"),
        [
            ("psnr_db>=30", "psnr_db", ">=", 30.0),
            (" mae <= 3.5 ", "mae", "<=", 3.5),
            ("relative_l2<=8e-2", "relative_l2", "<=", 0.08),
            ("cosine_similarity>=-.5", "cosine_similarity", ">=", -0.5),
        ],
    )
    def test_parsed(self, text: str, metric: str, op: str, value: float) -> None:
        constraint = Constraint.parse(text)
        assert (constraint.metric, constraint.op, constraint.value) == (metric, op, value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "form"), ("psnr_db", "form"), ("psnr_db=30", "form"), ("psnr_db>30", "form"), (">=30", "form"),
            ("psnr_db>=", "form"), ("psnr_db>=nan", "form"), ("psnr_db>=inf", "form"), ("psnr_db>=1_0", "form"),
            ("psnr_db>=\u0663", "form"), ("PSNR>=3", "form"), ("psnr_db>=30; drop", "form"), ("psnr_db>=3\0", "form"),
            ("psnr>=30", "unknown metric"), ("lpips<=0.1", "unknown metric"),
            ("psnr_db<=30", "wrong way"), ("mae>=3", "wrong way"),
            ("psnr_db>=1e999", "finite"), ("mae<=" + "9" * 400, "finite"),
            ("psnr_db>=--3", "not a number"), ("psnr_db>=1e", "not a number"), ("psnr_db>=.", "not a number"),
        ],
    )  # fmt: skip
    def test_refused(self, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Constraint.parse(text)

    @pytest.mark.parametrize(
        "text", ["x" * 9000, "x" * 9000 + ">=1", "psnr_db<=" + "1" * 9000, "mae<=" + "-" * 9000, "mae<=" + "9" * 9000]
    )
    def test_what_is_refused_is_told_in_short(self, text: str) -> None:
        with pytest.raises(UsageError) as refused:
            Constraint.parse(text)
        assert len(str(refused.value)) < 300

    @given(st.sampled_from(METRICS), st.floats(allow_nan=False, allow_infinity=False))
    def test_what_is_written_is_read_back(self, metric: str, value: float) -> None:
        constraint = Constraint(metric, ">=" if metric in HIGHER_IS_BETTER else "<=", value)
        assert Constraint.parse(str(constraint)) == constraint

    def test_it_is_written_short(self) -> None:
        assert str(Constraint.parse("psnr_db>=30.0")) == "psnr_db>=30"
        assert str(Constraint.parse("cosine_similarity>=0.9999999")) == "cosine_similarity>=0.9999999"

    def test_violation_is_above_0_where_it_fails(self) -> None:
        assert Constraint.parse("psnr_db>=30").violation(28.0) == 2.0
        assert Constraint.parse("psnr_db>=30").violation(30.0) == 0.0
        assert Constraint.parse("mae<=3").violation(5.0) == 2.0
        assert Constraint.parse("mae<=3").violation(1.0) == -2.0


class TestRequirement:
    def test_presets_are_ordered_by_what_they_ask(self) -> None:
        assert list(PRESETS) == ["recommended", "good", "strict"]
        bounds = [Requirement(PRESETS[name]).min_psnr for name in PRESETS]
        assert bounds == [20.0, 25.0, 30.0]

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_point_the_right_way(self, name: str) -> None:
        for constraint in PRESETS[name]:
            assert (constraint.op == ">=") == (constraint.metric in HIGHER_IS_BETTER)
            assert Constraint.parse(str(constraint)) == constraint

    def test_the_worst_prompt_decides_by_default(self) -> None:
        strict = Requirement(PRESETS["strict"])
        assert strict.met_by([quality(GOOD)])
        assert not strict.met_by([quality(GOOD), quality(BAD, "b")])

    def test_the_mean_where_it_is_asked_for(self) -> None:
        asked = Requirement((Constraint.parse("mae<=7.5"),), "mean")
        assert asked.met_by([quality(GOOD), quality(BAD, "b")])
        assert not replace(asked, aggregate="worst").met_by([quality(GOOD), quality(BAD, "b")])

    def test_a_quantile_leaves_so_many_out(self) -> None:
        asked = Requirement((Constraint.parse("psnr_db>=30"), Constraint.parse("mae<=3")), "p25")
        assert asked.met_by([quality(GOOD)] * 3 + [quality(BAD)])
        assert not asked.met_by([quality(GOOD)] * 2 + [quality(BAD)])
        assert str(asked) == "psnr_db>=30, mae<=3 (p25 of prompts)"
        assert asked.aggregates == ("worst", "p25", "mean") and Requirement(()).aggregates == ("worst", "mean")

    def test_violations_name_each_constraint(self) -> None:
        asked = Requirement((Constraint.parse("psnr_db>=30"), Constraint.parse("mae<=3")))
        assert asked.violations(iter([quality(BAD)])) == {"psnr_db>=30": 10.0, "mae<=3": 11.0}

    def test_without_a_psnr_bound_there_is_no_least_psnr(self) -> None:
        assert Requirement((Constraint.parse("mae<=3"),)).min_psnr is None
        assert str(Requirement((Constraint.parse("mae<=3"),))) == "mae<=3 (worst prompt)"


def test_every_metric_has_one_direction() -> None:
    assert not set(HIGHER_IS_BETTER) & set(LOWER_IS_BETTER)
    assert set(METRICS) == set(GOOD)


def test_psnr_of_a_measurement() -> None:
    cases = (quality(GOOD), quality(BAD, "b"))
    measured = Measurement(SkipPolicy(), Latency(1.0, "measured"), cases, Coverage(0, 8, 0, True))
    assert measured.psnr_db() == 20.0
    assert 20.0 < measured.psnr_db("mean") < 40.0
