"""Which GPUs are offered: NVML's list, CUDA_VISIBLE_DEVICES, and what is done where NVML cannot be asked."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobclient.config import parse
from jobclient.gpus import Found, Gpu, find, offered
from jobclient.options import ConfigError

GPUS = [Gpu("H200", f"GPU-{digit * 4}-1", 140 * 2**30) for digit in "abcd"]


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, (0, 1, 2, 3)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("2, 0", (2, 0)),
        ("1,9,0", (1,)),  # the first that names none ends the list
        ("GPU-bbbb-1,GPU-a", (1, 0)),
        ("GPU-", ()),  # names four
        ("MIG-1234", ()),
    ],
)
def test_visible_devices_mean_what_they_mean_to_cuda(visible: str | None, devices: tuple[int, ...]) -> None:
    assert offered(GPUS, visible).devices == devices


def test_the_log_line_says_what_is_there_and_what_is_hidden() -> None:
    text = offered([*GPUS[:1], Gpu("A100", "GPU-x", 40 * 2**30, mig=True)], None).text
    assert text.startswith("2 GPUs by NVML (0: H200, 140 GiB; 1: A100, 40 GiB, in MIG mode")
    assert offered(GPUS, "3").text == "1 GPUs by NVML, 3 hidden by CUDA_VISIBLE_DEVICES='3' (3: H200, 140 GiB)"


class NvmlError(Exception):
    """What the library raises."""


def nvml(**replaced: object) -> SimpleNamespace:
    """nvidia-ml-py on a machine of two GPUs, of which one knows no MIG."""

    def mig_mode(handle: int) -> tuple[int, int]:
        if handle == 0:
            raise NvmlError("Not Supported")
        return 1, 1

    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: b"T4",
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=16 * 2**30),
        "nvmlDeviceGetMigMode": mig_mode,
    }
    return SimpleNamespace(NVMLError=NvmlError, NVML_DEVICE_MIG_ENABLE=1, **(functions | replaced))


def test_nvml_is_asked_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    found = find({}, tmp_path)
    assert found.devices == (0, 1)
    assert found.text.startswith("2 GPUs by NVML (0: T4, 16 GiB; 1: T4, 16 GiB, in MIG mode")
    assert parse([], {"CUDA_VISIBLE_DEVICES": "GPU-1"}).gpus == (1,)


@pytest.mark.parametrize("silent", ["nvmlInit", "nvmlDeviceGetName", None])
def test_without_nvml_the_drivers_list_and_the_environment_count(
    silent: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise NvmlError("Driver Not Loaded")

    # None in sys.modules: the import fails, as where the library is not installed
    monkeypatch.setitem(sys.modules, "pynvml", nvml(**{silent: fail}) if silent else None)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    why = "Driver Not Loaded" if silent else "install nvidia-ml-py"
    found = find({}, tmp_path)
    assert found.devices == (0, 1)
    assert why in found.text
    assert find({"CUDA_VISIBLE_DEVICES": "5,1,-1,0"}, tmp_path).devices == (5, 1)
    assert find({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == Found((), "no GPU")
    assert find({}, tmp_path / "none") == Found((), "no GPU")


def test_gpus_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert parse(["--gpus", "auto"], {}).gpus == (0, 1)
    assert parse(["--gpus", "none", "--slots", "3"], {}).gpus == ()
    assert parse(["--gpus", "1"], {}).gpus == (1,)
    assert parse(["--gpus", "auto", "--slots", "1"], {}).devices_text.endswith("; 1 GPU slots")
    assert parse(["--gpus", "auto", "--slots", "3"], {}).devices_text.endswith("; 3 CPU slots")
    with pytest.raises(ConfigError, match="--gpus is 'all'"):
        parse(["--gpus", "all"], {})


def test_health_check_is_on_for_gpus_and_off_for_cpu_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert parse([], {}).health_check
    assert not parse(["--gpus", "none"], {}).health_check
    assert parse(["--gpus", "none", "--health-check", "on"], {}).health_check
    assert not parse(["--health-check=off"], {}).health_check
    with pytest.raises(ConfigError, match="--health-check is 'perhaps'"):
        parse([], {"EDL_HEALTH_CHECK": "perhaps"})
