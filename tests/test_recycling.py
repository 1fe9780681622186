"""When a worker is to be replaced: limits, figures and age in, a reason out."""

import pytest

from wsgimaster.recycling import Figures, Limits, Urgency, budget, draw, judge
from wsgimaster.settings import Recycling

MIB = 1 << 20
NEW, DONE = Figures(0, 10 * MIB, 100 * MIB), Figures(300, 10 * MIB, 100 * MIB)

CASES = [
    # settings, limits, figures, age, the reason's beginning, its urgency
    ({}, (0, 0), DONE, 1e6, None, None),
    ({}, (300, 0), DONE, 10, "has served 300 requests (its max-requests is 300)", Urgency.BUDGET),
    ({}, (301, 0), DONE, 10, None, None),
    ({}, (300, 0), DONE, 9.9, None, None),
    ({"min_lifetime": 1}, (300, 0), DONE, 1, "has served", Urgency.BUDGET),
    ({"rss": 10 * MIB}, (0, 0), NEW, 10, "holds 10485760 bytes of memory (reload-on-rss = 10)", Urgency.NOW),
    ({"rss": 11 * MIB}, (0, 0), NEW, 10, None, None),
    ({"rss": 10 * MIB}, (0, 0), NEW, 9, None, None),
    ({"address_space": 100 * MIB}, (0, 0), NEW, 10, "holds 104857600 bytes of address space", Urgency.NOW),
    ({"min_lifetime": 1, "max_lifetime": 60}, (0, 60), NEW, 59, None, None),
    ({"max_lifetime": 60}, (0, 60), NEW, 61, "lifetime reached, it was running for 61 second(s)", Urgency.BUDGET),
    ({"evil_rss": 10 * MIB}, (0, 0), NEW, 0, "RSS: 10485760", Urgency.KILL),
    ({"evil_address_space": 100 * MIB}, (0, 0), NEW, 0, "ADDRESS SPACE: 104857600", Urgency.KILL),
    ({"rss": 10 * MIB, "evil_rss": 10 * MIB}, (1, 0), NEW, 99, "RSS: ", Urgency.KILL),
]


@pytest.mark.parametrize(("settings", "limits", "figures", "age", "text", "urgency"), CASES)
def test_the_reason(settings, limits, figures, age, text, urgency):
    reason = judge(Recycling(**settings), Limits(*limits), figures, age)
    if text is None:
        assert reason is None
    else:
        assert reason is not None
        assert (reason.text.startswith(text), reason.urgency) == (True, urgency), reason


@pytest.mark.parametrize(
    ("chance", "requests", "lifetime"), [(0.0, 1000, 60.0), (0.5, 1075, 67.5), (0.9999999, 1150, 75.0)]
)
def test_the_limits_are_spread_over_delta_times_the_other_workers(chance, requests, lifetime):
    settings = Recycling(max_requests=1000, max_requests_delta=10, max_lifetime=60, max_lifetime_delta=1)
    limits = draw(settings, 16, chance)
    assert (limits.requests, round(limits.lifetime, 3)) == (requests, lifetime)


def test_without_a_limit_a_delta_means_nothing():
    assert draw(Recycling(max_requests_delta=10, max_lifetime_delta=10), 16, 0.9) == Limits(0, 0.0)


@pytest.mark.parametrize(("given", "processes", "most"), [(0, 1, 1), (0, 9, 1), (0, 20, 2), (0, 128, 12), (3, 4, 3)])
def test_the_budget(given, processes, most):
    assert budget(Recycling(budget=given), processes) == most
