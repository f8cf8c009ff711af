"""A state with every kind of tensor that a state may have, and whether one arrived whole."""

from typing import Any

import torch


def any_state(seed: int) -> dict[str, Any]:
    """Every kind of tensor that a state may have."""
    torch.manual_seed(seed)
    base = torch.randn(4, 3, 2, 5)
    return {
        "bfloat16": base.bfloat16(),
        "half": base.half(),
        "bool": base > 0,
        "int64": torch.tensor([2**62 + seed, -seed]),
        "uint8": torch.tensor([seed, 255], dtype=torch.uint8),
        "scalar": torch.tensor(float(seed)),
        "empty": torch.empty(0, 3),
        "channels_last": base.clone().contiguous(memory_format=torch.channels_last),
        "transposed": base[0, 0].clone().t(),
        "strided": base.clone()[:, ::2],
        "complex": torch.view_as_complex(base[..., :2].clone()),
        "nested": [{"seed": seed, 7: (torch.ones(2) * seed, "text", None, float("inf"))}],
    }


def assert_same(found: Any, expected: Any, path: str = "state") -> None:
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, path
        assert torch.equal(found, expected), path
    elif isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key, value in expected.items():
            assert_same(found[key], value, f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{path}.{number}")
    else:
        assert found == expected, path
