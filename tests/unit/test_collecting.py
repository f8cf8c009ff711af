"""When a JobServer looks for cyclic garbage; in a process of its own, which this test session's garbage is not in."""

import subprocess
import sys

SCRIPT = """
import gc, weakref
from edl_collective.coord.clock import ManualClock
from jobserver.collecting import EVERY_S, OLDER, YOUNG, Collecting, begin_collecting

class Cyclic:
    def __init__(self):
        self.me = self

begin_collecting()
assert gc.get_freeze_count() > 1000, "what is there at the beginning is looked at no more"
assert gc.get_threshold() == (YOUNG, OLDER, OLDER)
clock = ManualClock(5.0)
collecting = Collecting(clock)
first = weakref.ref(Cyclic())
collecting.between_decisions()
assert first() is not None, "it is too early"
clock.advance(EVERY_S)
collecting.between_decisions()
assert first() is None, "it was time"
second = weakref.ref(Cyclic())
collecting.between_decisions()
assert second() is not None, "once in a while"
print("as it should be")
"""


def test_what_came_later_is_looked_at_once_in_a_while_and_nothing_else() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "as it should be\n"), result.stderr
