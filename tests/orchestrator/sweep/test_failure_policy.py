"""The failure table, row by row, and the counts of nodes and trials; without Ray."""

import pytest

from cryobench.conf import errors
from cryobench.orchestrator.sweep.failure_policy import (
    CRASHED,
    LOST_NODE,
    LOW_MEMORY,
    PREEMPTED,
    TREATMENTS,
    FailurePolicy,
    Node,
    treatment,
)

A, B, C = Node("a" * 8, "alpha"), Node("b" * 8, "beta"), Node("c" * 8, "gamma")
OF_THE_TRIAL = [kind for kind, rule in TREATMENTS.items() if rule.retry == "never"]
OF_THE_NODE = [kind for kind, rule in TREATMENTS.items() if rule.retry == "elsewhere"]
NOBODYS = [kind for kind, rule in TREATMENTS.items() if rule.retry == "always"]
COUNTED = [kind for kind, rule in TREATMENTS.items() if rule.retry == "counted"]


def policy(*nodes: Node, retries: int = 3) -> FailurePolicy:
    return FailurePolicy(retries, lambda: [node.id for node in nodes])


def test_every_kind_that_is_retried_later_is_no_failure_of_the_trial() -> None:
    for kind in errors.RETRIED_KINDS:
        assert treatment(kind).retry != "never", kind
    kinds = {error.kind for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "kind")}
    for kind in kinds & {*OF_THE_TRIAL}:
        assert kind not in errors.RETRIED_KINDS, kind
    assert kinds - TREATMENTS.keys() <= {"fetch", "tracking"}  # those never end a trial


@pytest.mark.parametrize("kind", OF_THE_TRIAL)
def test_what_is_the_trials_own_is_recorded_and_no_node_is_blamed(kind: str) -> None:
    judge = policy(A, B)
    for trial in ("1", "2", "3", "4"):
        verdict = judge.judge(trial, kind, A)
        assert not verdict.goes_on
        assert verdict.condemned is None
    assert judge.usable() == {A.id, B.id}


@pytest.mark.parametrize("kind", OF_THE_NODE)
def test_what_is_a_nodes_own_is_tried_on_another_and_the_node_is_avoided(kind: str) -> None:
    judge, after = policy(A, B, C), TREATMENTS[kind].avoid_after
    for trial in range(1, after + 1):
        verdict = judge.judge(str(trial), kind, A, "no space left on /scratch")
        assert verdict.goes_on
        assert verdict.avoid >= {A.id}
        assert (verdict.condemned == A) == (trial == after)
    assert judge.usable() == {B.id, C.id}
    assert judge.avoided[A.id] == "alpha: no space left on /scratch"


@pytest.mark.parametrize("kind", OF_THE_NODE)
def test_a_trial_that_fails_alike_on_two_nodes_is_not_tried_on_a_third(kind: str) -> None:
    judge = policy(A, B, C)
    assert judge.judge("1", kind, A).goes_on
    verdict = judge.judge("1", kind, B)
    assert not verdict.goes_on
    assert "not tried again" in verdict.why
    if not TREATMENTS[kind].even_the_last:  # it was the trial, so neither node is a step nearer to being avoided
        assert judge.judge("2", kind, A).condemned is None


@pytest.mark.parametrize("kind", OF_THE_NODE)
def test_on_a_single_node_it_ends_the_trial_and_only_what_fails_all_ends_the_sweep(kind: str) -> None:
    judge = policy(A)
    for trial in ("1", "2"):
        assert not judge.judge(trial, kind, A).goes_on
    assert (judge.usable() == set()) == TREATMENTS[kind].even_the_last


@pytest.mark.parametrize("kind", NOBODYS)
def test_what_is_nobodys_fault_is_never_counted(kind: str) -> None:
    judge = policy(A, B, retries=0)
    for _ in range(50):
        verdict = judge.judge("1", kind, A)
        assert verdict.goes_on
        assert verdict.condemned is None
    assert judge.failures_of("1") == 0


@pytest.mark.parametrize("kind", COUNTED)
def test_crashes_are_counted_to_the_limit(kind: str) -> None:
    judge = policy(A, B, retries=2)
    assert [judge.judge("1", kind, A).goes_on for _ in range(3)] == [True, True, False]
    assert judge.judge("2", kind, B).goes_on  # each trial for itself
    assert "time 2 of 3; going on" in judge.judge("2", kind, B).why


def test_a_preemption_between_two_crashes_changes_nothing() -> None:
    judge = policy(A, B, retries=1)
    assert judge.judge("1", CRASHED, A).goes_on
    assert judge.judge("1", PREEMPTED, A).goes_on
    assert judge.judge("1", LOST_NODE, None).goes_on
    assert not judge.judge("1", CRASHED, B).goes_on


def test_a_node_where_three_trials_crash_in_a_row_is_avoided_unless_it_is_the_last() -> None:
    judge = policy(A, B)
    for trial in ("1", "2"):
        judge.judge(trial, CRASHED, A)
    judge.finished_on(A)
    assert [judge.judge(trial, CRASHED, A).condemned for trial in ("3", "4", "5")] == [None, None, A]
    assert [judge.judge(trial, CRASHED, B).condemned for trial in ("6", "7", "8", "9")] == [None] * 4


def test_memory_of_a_node_is_no_reason_to_avoid_it() -> None:
    judge = policy(A, B)
    for trial in range(20):
        assert judge.judge(str(trial), LOW_MEMORY, A).condemned is None


def test_a_kind_of_a_later_release_is_the_trials() -> None:
    assert not policy(A, B).judge("1", "something_new", A).goes_on
