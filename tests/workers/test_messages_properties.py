"""Any exception of a worker reaches the caller: its class where that can be pickled, its text always."""

import builtins

from hypothesis import given
from hypothesis import strategies as st

from flowreg_gpu.workers.messages import Failure, WorkerTraceback

KINDS = sorted(
    (kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    key=lambda kind: kind.__name__,
)
ARGUMENTS = st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.binary(max_size=9)


class Unpicklable(Exception):
    """Its __init__ takes other arguments than it hands on."""

    def __init__(self, frame, problem):
        super().__init__(f"frame {frame}: {problem}")


def caught(make):
    """An exception with a traceback, as a task raises it; None where it cannot be made of these arguments."""
    try:
        error = make()
    except (TypeError, ValueError):
        return None
    try:
        raise error
    except Exception as raised:
        return raised


@given(st.sampled_from(KINDS), st.lists(ARGUMENTS, max_size=3))
def test_exceptions_of_python(kind, arguments):
    error = caught(lambda: kind(*arguments))
    if error is None:
        return
    found = Failure.of(error).exception()
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert isinstance(found.__cause__, WorkerTraceback)
    assert "in caught" in str(found.__cause__)


@given(st.integers(), st.text())
def test_an_exception_that_cannot_be_pickled(frame, problem):
    found = Failure.of(caught(lambda: Unpicklable(frame, problem))).exception()
    assert type(found) is RuntimeError
    assert str(found) == f"Unpicklable: frame {frame}: {problem}"
    assert "in caught" in str(found.__cause__)
