"""A worker that uses Horovod itself and nothing of ours: places arrive as JSON lines on stdin, news leave on stdout.

Lines out: "gate <last generation>", "running <generation> <rank> <size> <sum>" where sum is an allreduce of rank + 1.
A line "stop" ends the generation: back to the gate.
"""

import json
import os
import sys

import horovod.torch as hvd
import torch

NAMES = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size")


def main() -> None:
    os.environ.update(
        HOROVOD_ELASTIC="1",
        HOROVOD_CONTROLLER="gloo",
        HOROVOD_CPU_OPERATIONS="gloo",
        HOROVOD_GLOO_IFACE="lo",
        HOROVOD_GLOO_RENDEZVOUS_PORT="0",
        HOROVOD_HOSTNAME=sys.argv[1],
    )
    torch.set_num_threads(1)
    generation = 0
    print(f"gate {generation}", flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            hvd.shutdown()
            print(f"gate {generation}", flush=True)
            continue
        place = json.loads(line)
        generation = place["generation"]
        os.environ.update({f"HOROVOD_{name.upper()}": str(place[name]) for name in NAMES})
        os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"] = place["rendezvous"]
        hvd.init()
        total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum).item()
        print(f"running {generation} {hvd.rank()} {hvd.size()} {total:g}", flush=True)


if __name__ == "__main__":
    main()
