"""A worker of abort_soak.py: tiny allreduces in one world after another, through the product's GatedWorlds.

After each world it says how many file descriptors it has open. Its JobClient ends it.
"""

import os

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from edl_collective.context import read_context
from edl_collective.messages import Happened
from edl_collective.worlds import GatedWorlds


def main() -> None:
    torch.set_num_threads(1)
    context = read_context(os.environ)
    assert context.membership is not None
    worlds = GatedWorlds(context.membership)
    while True:
        try:
            worlds.enter()
            while not worlds.interrupted():
                handles = [hvd.allreduce_async(torch.ones(64), name=f"{worlds.generation}.{i}") for i in range(4)]
                for handle in handles:
                    hvd.synchronize(handle)
        except HorovodInternalError:
            worlds.give_up()
        worlds.exit()
        worlds.happened(Happened(kind="fds", text=str(len(os.listdir("/proc/self/fd")))))


if __name__ == "__main__":
    main()
