"""The random states of a process as one object that a checkpoint can hold.

Invariant: on the rank that saved it, training draws after loading what it would have drawn; every other rank gets seeds
of its own, derived from the same state, so that ranks never draw alike. Only generators whose packages are loaded take
part: it imports neither numpy nor torch.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import xxhash

from checkpoints.errors import CheckpointMismatch

_SEED_MASK = (1 << 32) - 1


class RngState:
    """Random states of Python, numpy, torch and each CUDA device.

    Args:
        rank: of this process in its job.
    """

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank

    def state_dict(self) -> dict[str, Any]:
        """The states as they are now."""
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        state: dict[str, Any] = {"rank": self._rank, "python": random.getstate()}
        if numpy is not None:
            state["numpy"] = numpy.random.get_state()
        if torch is not None:
            state["torch"] = torch.get_rng_state()
            if torch.cuda.is_available() and torch.cuda.is_initialized():
                state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw on from a saved state, or, on another rank, from one derived from it.

        Raises:
            CheckpointMismatch: if it is not what `state_dict` gives.
        """
        try:
            self._restore(state) if state["rank"] == self._rank else self._derive(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointMismatch(f"not a random state that can be used here: {error}") from error

    def _restore(self, state: dict[str, Any]) -> None:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        random.setstate(state["python"])
        if numpy is not None and "numpy" in state:
            numpy.random.set_state(state["numpy"])
        if torch is not None and "torch" in state:
            torch.set_rng_state(state["torch"].cpu())
            saved = state.get("cuda", [])
            # A machine with fewer or more devices than the one that saved: those that both have.
            for device in range(min(len(saved), torch.cuda.device_count())):
                torch.cuda.set_rng_state(saved[device].cpu(), device)

    def _derive(self, state: dict[str, Any]) -> None:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        seed = xxhash.xxh3_64_intdigest(repr((state["python"], self._rank)).encode())
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed & _SEED_MASK)
        if torch is not None:
            torch.manual_seed(seed >> 1)
