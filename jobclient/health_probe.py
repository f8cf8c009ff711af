"""One device computes and communicates: a matrix product and an allreduce with itself, both checked to the last bit.

Run as `python -m jobclient.health_probe cpu|cuda` by jobclient.health, with only the device in question visible. Exit
codes: 0 it works, 1 it does not, NOT_CHECKED this installation cannot tell; the last line of output says why. It
measures nothing.
"""

import sys
import tempfile

NOT_CHECKED = 3
_SIZE = 512


def main(kind: str) -> int:
    try:
        import torch
    except ImportError as error:
        return _end(NOT_CHECKED, f"torch cannot be imported: {error}")
    if kind == "cuda" and torch.version.cuda is None:
        return _end(NOT_CHECKED, f"torch {torch.__version__} is built without CUDA")
    try:
        if kind == "cuda" and not torch.cuda.is_available():
            return _end(1, "torch does not reach the device")
        problem = _compute(kind) or _communicate(kind)
    except (RuntimeError, ValueError) as error:  # torch's errors are of these, out of memory too
        return _end(1, f"{type(error).__name__}: {error}".replace("\n", " ")[:300])
    return _end(1, problem) if problem else 0


def _compute(kind: str) -> str | None:
    """Why the product is wrong; small whole numbers, so that every way to add them up gives the same."""
    import torch

    numbers = (torch.arange(_SIZE * _SIZE) * 7919 % 7 - 3).reshape(_SIZE, _SIZE)  # [512, 512], -3 to 3
    expected = numbers @ numbers.T
    ours = numbers.to(kind, torch.float32)
    wrong = int((((ours @ ours.T).cpu()).to(torch.int64) != expected).sum())
    return f"{wrong} of {_SIZE * _SIZE} elements of a matrix product are wrong" if wrong else None


def _communicate(kind: str) -> str | None:
    """Why an allreduce of one rank is wrong, by NCCL where torch has it, else by gloo."""
    import torch
    from torch import distributed

    backend = "nccl" if kind == "cuda" and distributed.is_nccl_available() else "gloo"
    with tempfile.TemporaryDirectory(prefix="edl-health-") as folder:
        distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            value = torch.arange(_SIZE, dtype=torch.float32, device=kind)
            distributed.all_reduce(value)
            right = bool(torch.equal(value.cpu(), torch.arange(_SIZE, dtype=torch.float32)))
        finally:
            distributed.destroy_process_group()
    return None if right else f"an allreduce with itself ({backend}) changed the values"


def _end(code: int, text: str) -> int:
    print(text, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
