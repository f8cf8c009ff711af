"""Random numbers that survive a resize: a function of the script's seed, the completed steps and the rank.

Ranks differ from each other, so dropout masks do; a newcomer draws what no survivor draws; and a job that resumes at a
step draws what it would have drawn had it begun its world or its epoch there. A script without a seed keeps its own.
"""

import hashlib
import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed torch (all devices), numpy and Python."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def reseed(seed: int, step: int, rank: int) -> None:
    """Seed everything for what `rank` does after `step` completed steps."""
    digest = hashlib.blake2b(f"{seed}:{step}:{rank}".encode(), digest_size=8).digest()
    seed_all(int.from_bytes(digest, "little") >> 1)  # torch takes 63 bits
