"""How patient a student is with its teachers. [pure]"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, except where a name says otherwise."""

    #: requests that one teacher may have at once: its connections
    max_depth: int = 8
    first_depth: int = 2
    #: an attempt ends after max(deadline_s, deadline_factor x p99), or first_deadline_s while no latency is known
    deadline_s: float = 2.0
    deadline_factor: float = 5.0
    first_deadline_s: float = 30.0
    longest_deadline_s: float = 120.0
    #: a second teacher is asked after max(hedge_s, hedge_factor x p95), or deadline_s while no latency is known
    hedge_s: float = 0.05
    hedge_factor: float = 1.5
    #: hedges: this share of the requests, and this many besides
    hedge_share: float = 0.05
    hedge_burst: float = 4.0
    #: requests that are sent again at once: this share, and this many besides; the others wait retry_pause_s
    retry_share: float = 0.2
    retry_burst: float = 64.0
    retry_pause_s: float = 0.5
    #: times that a request may be refused, or answered wrongly, before it is given up, if each teacher was asked
    refusals: int = 3
    #: pause before a probe, doubled from fault to fault
    least_backoff_s: float = 0.1
    longest_backoff_s: float = 30.0
    probe_s: float = 2.0
