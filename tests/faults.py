"""What faults did to the job of a test cluster: the measurements of `edl drill`."""

from cluster import Cluster

from jobserver.drill import victim
from jobserver.drill.steps import Step

__all__ = ["Step", "Victim"]


class Victim(victim.Victim):
    """The job of a test cluster that faults are done to."""

    cluster: Cluster
