"""The rule by which times are ranked."""

from __future__ import annotations

from scheduler.planning.ranking import Timing, beats, by_device, ranked


def order(**known: Timing) -> list[str]:
    return ranked(known, lambda name: known[name])


def test_a_measured_time_goes_before_a_predicted_one():
    assert order(hoped=Timing(1, False), slow=Timing(9, True), fast=Timing(5, True)) == ["fast", "slow", "hoped"]


def test_a_prediction_goes_before_only_where_its_upper_bound_does():
    assert order(measured=Timing(5, True), vague=Timing(1, False, 6), sure=Timing(3, False, 4)) == ["sure", "measured", "vague"]


def test_predictions_among_themselves_go_by_their_time_and_equals_stay_in_order():
    assert order(b=Timing(2, False), a=Timing(1, False), c=Timing(1, False)) == ["a", "c", "b"]


def test_what_beats_what():
    assert beats(Timing(1, True), Timing(2, True))
    assert not beats(Timing(1, True), Timing(1, True))
    assert beats(Timing(9, True), Timing(1, False))
    assert not beats(Timing(1, False), Timing(9, True))
    assert beats(Timing(1, False, 2), Timing(9, True))


def test_devices_are_groups_with_one_first():
    assert by_device(["b1", "a1", "c1", "b2"], lambda item: item[0], "a") == [["a1"], ["b1", "b2"], ["c1"]]
    assert by_device(["b1"], lambda item: item[0], "a") == [["b1"]]
