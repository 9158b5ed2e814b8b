"""Work in processes: results in order, warnings and lost processes told to the one who gave the work."""

import os
import warnings

import pytest

from deformscope.draw.batch import in_processes
from deformscope.errors import DeformscopeError, DeformscopeWarning


def doubled(number: int) -> int:
    warnings.warn(f"number {number}", DeformscopeWarning, stacklevel=1)
    return 2 * number


def lost(number: int) -> None:
    os._exit(number)


def test_results_come_in_the_order_of_tasks_and_warnings_with_them():
    with pytest.warns(DeformscopeWarning) as said:
        assert list(in_processes(doubled, range(5), jobs=2)) == [0, 2, 4, 6, 8]
    assert [str(one.message) for one in said] == [f"number {number}" for number in range(5)]


def test_a_lost_process_is_one_line():
    with pytest.raises(DeformscopeError, match="jobs=2: a process ended early, possibly for lack of memory"):
        list(in_processes(lost, [1, 1], jobs=2))


def test_what_cannot_be_sent_is_one_line():
    with pytest.raises(DeformscopeError, match=r"jobs=2: what it takes cannot be sent .*jobs=1"):
        list(in_processes(lambda number: number, [1, 2], jobs=2))
