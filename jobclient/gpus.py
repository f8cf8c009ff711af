"""Which GPUs this machine offers: asked of NVML, else of the kernel driver's list; CUDA itself is not loaded.

Devices are numbered as nvidia-smi does, by their place on the PCI bus. What CUDA_VISIBLE_DEVICES hides is not there,
and as in CUDA its first entry that names no device ends the list. A GPU in MIG mode counts as one device. Whether a
device works is the business of jobclient.health.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LISTED = Path("/proc/driver/nvidia/gpus")
_NO_NVML = "install nvidia-ml-py (the extra `gpu`) to know more"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device that NVML lists; its number is its place in the list."""

    name: str
    #: GPU- and a UUID
    uuid: str
    memory_bytes: int
    mig: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The devices to offer, and a sentence for the log about what was found where."""

    devices: tuple[int, ...]
    text: str


def find(environ: Mapping[str, str], listed: Path = _LISTED) -> Found:
    """Look at the machine. `listed`: the folder in which the kernel driver has an entry per GPU."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    gpus, problem = _ask_nvml()
    if gpus is not None:
        return offered(gpus, visible)
    count = len(list(listed.iterdir())) if listed.is_dir() else 0
    if visible is None:
        return Found(tuple(range(count)), f"{count} GPUs by the kernel driver's list; {problem}" if count else "no GPU")
    devices = _numbers(visible)
    return Found(
        devices, f"{len(devices)} GPUs by CUDA_VISIBLE_DEVICES={visible!r}; {problem}" if devices else "no GPU"
    )


def offered(gpus: Sequence[Gpu], visible: str | None) -> Found:
    """What of NVML's list CUDA_VISIBLE_DEVICES (None: not set) leaves to be offered."""
    devices = tuple(range(len(gpus))) if visible is None else _named(visible, gpus)
    hidden = f", {len(gpus) - len(devices)} hidden by CUDA_VISIBLE_DEVICES={visible!r}" if visible is not None else ""
    parts = [f"{number}: {_text(gpus[number])}" for number in devices]
    return Found(devices, f"{len(devices)} GPUs by NVML{hidden}" + (f" ({'; '.join(parts)})" if parts else ""))


def _text(gpu: Gpu) -> str:
    mig = ", in MIG mode: offered as one device, of which CUDA uses the first instance" if gpu.mig else ""
    return f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB{mig}"


def _named(visible: str, gpus: Sequence[Gpu]) -> tuple[int, ...]:
    """The devices that `visible` names by number or by the beginning of a UUID."""
    found: list[int] = []
    for word in map(str.strip, visible.split(",")):
        if word.isdecimal():
            fitting = [int(word)] if int(word) < len(gpus) else []
        else:
            fitting = [number for number, gpu in enumerate(gpus) if word and gpu.uuid.startswith(word)]
        if len(fitting) != 1:
            break
        found += fitting
    return tuple(found)


def _numbers(visible: str) -> tuple[int, ...]:
    """The devices that `visible` names by number, where nobody can say what there is."""
    found: list[int] = []
    for word in map(str.strip, visible.split(",")):
        if not word.isdecimal():
            break
        found.append(int(word))
    return tuple(found)


def _ask_nvml() -> tuple[list[Gpu] | None, str]:
    """NVML's list; None, and why there is none, if it cannot be asked."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None, _NO_NVML
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"NVML does not answer ({error})"
    try:
        return [_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(n)) for n in range(nvml.nvmlDeviceGetCount())], ""
    except nvml.NVMLError as error:
        return None, f"NVML does not answer ({error})"
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    try:
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # a device that knows no MIG
        mig = False
    memory_bytes = nvml.nvmlDeviceGetMemoryInfo(handle).total
    return Gpu(_string(nvml.nvmlDeviceGetName(handle)), _string(nvml.nvmlDeviceGetUUID(handle)), memory_bytes, mig)


def _string(value: str | bytes) -> str:
    """Older releases of nvidia-ml-py answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value
