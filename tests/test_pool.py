"""The pool of texts of many calls: order, shares, lanes, and what a batch costs."""

from types import SimpleNamespace

import pytest

from glimodern.inference import pool as pools
from glimodern.inference.pace import Arrivals, BatchCost
from glimodern.inference.pool import Job, Lane, Part, Pool
from glimodern.inference.request import Search

BATCH = 100  # tokens


def lane(network="a", label_vectors=None):
    return Lane(network, label_vectors, None, None, lambda: BATCH)


def enqueue(pool, tokens, *, lane=None, name="", scores=None):
    """Add a job whose passages have these tokens."""
    job = Job(lane or LANE, Search(), 1, lambda outcomes: None)
    job.name = name
    text = SimpleNamespace(job=job, scores=scores)
    with pool._lock:
        pool._enqueue(job, [Part(text, None, count) for count in tokens])
    return job


LANE = lane()


def names(batch):
    return [part.text.job.name for part in batch]


def test_jobs_are_served_in_the_order_of_arrival_and_share_batches():
    pool = Pool()
    for name in "abc":
        enqueue(pool, [40, 20], name=name)
    assert names(pool.take()) == ["a", "a", "b"]  # 180 tokens are two batches of about 90 tokens
    assert names(pool.take()) == ["b", "c", "c"]
    assert pool.take() == []
    assert pool.tokens == 0


def test_a_passage_larger_than_a_batch_is_a_batch():
    pool = Pool()
    enqueue(pool, [250], name="large")
    enqueue(pool, [10], name="small")
    assert names(pool.take()) == ["large"]
    assert names(pool.take()) == ["small"]


def test_a_passage_that_does_not_fit_keeps_its_place():
    pool = Pool()
    for name, tokens in (("a", 60), ("b", 90), ("c", 30)):
        enqueue(pool, [tokens], name=name)
    assert names(pool.take()) == ["a", "c"]
    enqueue(pool, [20], name="d")
    assert names(pool.take())[0] == "b"


@pytest.mark.parametrize("other", [lane("b"), lane("a", label_vectors=object())])
def test_another_network_or_other_label_vectors_have_their_own_batches(other):
    pool = Pool()
    enqueue(pool, [10, 10], name="a")
    enqueue(pool, [10], lane=other, name="other")
    enqueue(pool, [10], lane=lane(), name="equal")  # equal values, created anew
    assert names(pool.take()) == ["a", "a", "equal"]
    assert names(pool.take()) == ["other"]


def test_spans_to_score_and_texts_to_search_have_their_own_batches():
    pool = Pool()
    enqueue(pool, [10], name="search")
    enqueue(pool, [10], name="score", scores=object())
    enqueue(pool, [10], name="search 2")
    assert names(pool.take()) == ["search", "search 2"]
    assert names(pool.take()) == ["score"]


def test_small_jobs_do_not_wait_for_a_large_one_and_the_large_one_goes_on(monkeypatch):
    monkeypatch.setattr(pools, "_SHORT_TOKENS", 200)
    pool = Pool()
    enqueue(pool, [50] * 400, name="large")
    for _ in range(3):  # until it is long
        assert set(names(pool.take())) == {"large"}
    for _ in range(100):
        enqueue(pool, [50], name="small")
    served = []
    while "small" in (batch := names(pool.take())):
        served += batch
    shares = pools._SHORT_SHARE
    assert served.count("small") == 100
    assert served.count("large") == pytest.approx(100 / shares, abs=2)
    assert "small" in served[:2]


def test_large_jobs_share_evenly_and_a_later_one_does_not_catch_up(monkeypatch):
    monkeypatch.setattr(pools, "_SHORT_TOKENS", 100)
    pool = Pool()
    enqueue(pool, [50] * 100, name="first")
    for _ in range(20):
        pool.take()
    enqueue(pool, [50] * 100, name="second")
    served = [name for _ in range(20) for name in names(pool.take())]
    assert abs(served.count("first") - served.count("second")) <= 3


def test_a_share_that_was_idle_claims_no_time(monkeypatch):
    monkeypatch.setattr(pools, "_SHORT_TOKENS", 100)
    pool = Pool()
    enqueue(pool, [50] * 300, name="large")
    for _ in range(100):  # 10,000 tokens for the long share alone
        pool.take()
    for _ in range(40):
        enqueue(pool, [50], name="small")
    served = [name for _ in range(12) for name in names(pool.take())]
    assert 4 <= served.count("large") <= 8  # a quarter


def test_a_cancelled_job_costs_nothing_more():
    pool = Pool()
    job = enqueue(pool, [30] * 5, name="cancelled")
    enqueue(pool, [30], name="other")
    pool.cancel(job)
    assert pool.tokens == 30
    assert names(pool.take()) == ["other"]
    with pool._lock:
        pool._enqueue(job, [Part(SimpleNamespace(job=job, scores=None), None, 10)])
    assert pool.take() == []


def test_the_cost_of_batches_is_a_line():
    cost = BatchCost()
    assert (cost.known, cost.fixed, cost.per_token, cost.seconds(1000, 100)) == (False, 0, 0, 0)
    for tokens in (100, 2000, 500, 1500, 50):
        cost.add(tokens, 0.01 + 0.001 * tokens)
    assert cost.fixed == pytest.approx(0.01)
    assert cost.per_token == pytest.approx(0.001)
    assert cost.seconds(1000, 100) == pytest.approx(10 * 0.01 + 1.0)


@pytest.mark.parametrize("batches", [[(100, 1.0)], [(100, 1.0)] * 50, [(100, 1.0), (200, 1.0)], [(100, 1.0), (200, 4)]])
def test_the_cost_of_batches_is_never_negative(batches):
    cost = BatchCost()
    for tokens, seconds in batches:
        cost.add(tokens, seconds)
    assert cost.fixed >= 0
    assert 0 <= cost.per_token
    assert cost.seconds(100, 100) > 0


def test_a_batch_that_was_held_up_changes_the_cost_little():
    cost = BatchCost()
    for tokens in (100, 2000, 500, 1500, 50):
        cost.add(tokens, 0.01 + 0.001 * tokens)
    cost.add(1000, 600.0)  # the machine slept
    assert cost.seconds(1000, 2048) < 10
    for _ in range(30):  # but a machine that became slower is believed
        cost.add(1000, 100.0)
    assert cost.seconds(1000, 2048) == pytest.approx(100, rel=0.2)


def test_batches_of_one_size_have_no_fixed_cost():
    cost = BatchCost()
    for _ in range(50):
        cost.add(100, 2.0)
    assert cost.fixed == pytest.approx(0, abs=1e-9)
    assert cost.per_token == pytest.approx(0.02)


def test_a_pause_between_arrivals_counts_at_once_and_a_burst_slowly():
    arrivals = Arrivals()
    assert arrivals.gap == float("inf")
    arrivals.add(10.0)
    assert arrivals.gap == float("inf")
    arrivals.add(11.0)
    assert arrivals.gap == 1.0
    arrivals.add(11.1)
    assert 0.1 < arrivals.gap < 1.0
    arrivals.add(31.1)
    assert arrivals.gap == pytest.approx(20.0)
