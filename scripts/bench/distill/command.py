"""scripts/bench.sh distill: what service distillation costs, beside peers and beside training without it."""

import argparse
from functools import partial

from bench.command import Command, Measurement, Report, measured, single
from bench.rows import Row

DESCRIPTION = """\
Measures service distillation on this machine, each case beside what it is compared with, in turns:
  client-cpu-tcp            CPU of a request of 32 uint8 images of 224 x 224 at the student; Triton's clients
  server-cpu                CPU of such a request at a teacher whose model costs nothing
  handover                  CPU of the trainer's thread per batch, beyond what the DataLoader's own next() takes
  student-vs-plain-python   batches a second of a Python-bound loop, over those of plain training
  student-vs-plain-compute  the same for a loop that computes
  student-vs-inprocess      the same over a loop that computes the teacher's answers itself, and over the ceiling
  teacher-kill              the longest gap of the student when one of two teachers gets SIGKILL
  teacher-stop              the same with SIGSTOP
  balance-sim               simulated: useful time of 40 unequal teachers for 8 students, over the optimum
"""


def measurements() -> list[Measurement]:
    """In the order in which they run; imported late, since the students load torch."""
    from bench.distill import balance_sim, ratios, server_cpu, students

    python, compute = "student-vs-plain-python", "student-vs-plain-compute"
    return [
        single("client-cpu-tcp", students.client_cpu, "cpu_ms", 0.7),
        single("server-cpu", server_cpu.measure, "cpu_ms", 0.9),
        single("handover", students.handover, "cpu_ms", 0.1),
        single(python, partial(ratios.vs_plain, python), "ratio", 0.97, at_least=True),
        single(compute, partial(ratios.vs_plain, compute), "ratio", 0.97, at_least=True),
        single("student-vs-inprocess", ratios.vs_inprocess, "ratio_of_ceiling", 0.97, at_least=True),
        single("teacher-kill", students.teacher_kill, "gap_s", 0.1),
        single("teacher-stop", students.teacher_stop, "gap_s", 2.5),
        single("balance-sim", balance_sim.balance_sim, "ratio", 0.97, at_least=True),
    ]


def run(options: argparse.Namespace, _report: Report) -> list[Row]:
    return measured(measurements(), options.cases, options.runs)


COMMAND = Command(
    name="distill",
    help="service distillation, beside peers and plain training",
    description=DESCRIPTION,
    quick="under 10 minutes: 3 runs of each case",
    run=run,
)
