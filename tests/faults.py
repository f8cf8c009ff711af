"""What faults did to the job of a test cluster: the measurements of `edl drill`."""

from jobserver.drill.steps import Step
from jobserver.drill.victim import Victim

__all__ = ["Step", "Victim"]
