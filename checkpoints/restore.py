"""Loading a checkpoint into live objects: strictly or by name, all of it verified before any of it is changed.

Invariant: no object is touched before every shard that is asked for has been verified. Shards that nobody asks for are
not read, so weights alone can be loaded from the checkpoint of a training.
What is on a local disk is read twice, once to verify it and once straight into a module's own tensors, which costs less
than memory for a second copy; over a network it is read once into memory of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from checkpoints.drivers import Driver
from checkpoints.errors import CheckpointDamaged, CheckpointMismatch, StateNotSupported
from checkpoints.layout import Manifest, Shard
from checkpoints.loader import explain_nothing, newest_first, settled, shards_of
from checkpoints.retention import Condition
from checkpoints.shard_reader import check_shard, read_into, read_shard
from checkpoints.store import CheckpointInfo, Examined, Skipped
from checkpoints.tree import flatten

logger = logging.getLogger(__name__)

#: What load_state_dict() methods raise when a state is not theirs.
_MISFITS = (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True)
class Restored:
    """What was loaded.

    Attributes:
        manifest: of the checkpoint.
        info: which one it is.
        skipped: newer ones that were passed over, newest first, each with its reason.
        highest_epoch: the highest driver epoch of any attempt in the folder.
    """

    manifest: Manifest
    info: CheckpointInfo
    skipped: tuple[Skipped, ...]
    highest_epoch: int


def restore(
    driver: Driver, objects: Mapping[str, Any], *, strict: bool = True, checkpoint_no: int | None = None
) -> Restored | None:
    """Load the newest valid checkpoint, or one by its number, into objects; None if the folder has none.

    Args:
        driver: the checkpoint folder.
        objects: by the name they were saved under, objects with `load_state_dict()`, or dicts, which are filled.
        strict: every object must be in the checkpoint and fit exactly; otherwise what is missing is left as it is, and
            of a module those tensors are loaded whose name and shape fit.

    Raises:
        CheckpointMismatch: if something does not fit.
        CheckpointNotFound, CheckpointDamaged, CheckpointUnavailable: as `load_checkpoint`.
    """
    for name, value in objects.items():
        if not callable(getattr(value, "load_state_dict", None)) and not isinstance(value, MutableMapping):
            raise CheckpointMismatch(f"{name}: a {type(value).__name__} has no load_state_dict() and is no dict")
    return settled(driver, lambda: _restore(driver, objects, strict, checkpoint_no))


def _restore(driver: Driver, objects: Mapping[str, Any], strict: bool, checkpoint_no: int | None) -> Restored | None:
    skipped: list[Skipped] = []
    lost = False
    highest_epoch = None
    for examined in newest_first(driver, None):
        highest_epoch = examined.attempt.driver_epoch if highest_epoch is None else highest_epoch
        if checkpoint_no not in (None, examined.attempt.number):
            continue
        try:
            manifest, apply = _prepare(driver, examined, objects, strict)
        except CheckpointDamaged as error:
            lost = lost or examined.condition is not Condition.UNFINISHED
            skipped.append(Skipped(str(examined.attempt), str(error)))
            logger.warning("checkpoint %s in %s is not used: %s", examined.attempt, driver.url, error)
            continue
        for load in apply:
            load()
        return Restored(manifest, examined.info(driver.url), tuple(skipped), highest_epoch)
    explain_nothing(driver.url, checkpoint_no, skipped, lost)
    return None


def _prepare(
    driver: Driver, examined: Examined, objects: Mapping[str, Any], strict: bool
) -> tuple[Manifest, list[Callable[[], None]]]:
    """Verify what is asked for; returns what is left to do, which reads nothing that was not verified."""
    manifest, shards = shards_of(examined)
    missing = sorted(objects.keys() - shards.keys())
    if missing and strict:
        raise CheckpointMismatch(
            f"{examined.attempt} has no {', '.join(missing)} (it has {', '.join(shards)}): give what it has, or "
            "strict=False to leave the rest as it is",
            url=driver.url,
        )
    if missing:
        logger.warning("%s has no %s: left as it is", examined.attempt, ", ".join(missing))
    apply: list[Callable[[], None]] = []
    for name, value in objects.items():
        if name not in shards:
            continue
        path, shard = f"{examined.attempt}/{shards[name].name}", shards[name]
        own = _own_tensors(value) if getattr(driver, "is_local", False) else None
        if own is None:
            state = read_shard(driver, path, shard, "cpu")
            apply.append(partial(_give, name, value, state, strict))
        else:
            check_shard(driver, path, shard)
            apply.append(partial(_read_again, driver, path, shard, name, value, own, strict))
    return manifest, apply


def _read_again(
    driver: Driver, path: str, shard: Shard, name: str, value: Any, own: tuple[Any, dict[str, Any]], strict: bool
) -> None:
    """Straight into a module's tensors; one whose tensors are others says itself what does not fit."""
    if not read_into(driver, path, shard, *own):
        _give(name, value, read_shard(driver, path, shard, "cpu"), strict)


def _give(name: str, value: Any, state: Any, strict: bool) -> None:
    try:
        if not callable(getattr(value, "load_state_dict", None)):
            if not isinstance(state, Mapping):
                raise TypeError(f"it is a {type(state).__name__}, and a dict was given to be filled")
            value.clear()
            value.update(state)
        elif _is_module(value) and not strict:
            fitting = _fitting(value.state_dict(), state)
            logger.info("%s: %d of %d tensors are loaded", name, len(fitting), len(state))
            value.load_state_dict(fitting, strict=False)
        else:
            value.load_state_dict(state)
    except _MISFITS as error:
        raise CheckpointMismatch(f"{name}: its state in the checkpoint does not fit: {error}") from error


def _fitting(own: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that the module has, too, in the same shape."""
    return {
        key: item
        for key, item in state.items()
        if key in own and getattr(own[key], "shape", None) == getattr(item, "shape", None)
    }


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _own_tensors(value: Any) -> tuple[Any, dict[str, Any]] | None:
    """The tree and the tensors that a module would be saved as, if loading it means but to fill them; else None."""
    if not _is_module(value):
        return None
    import torch

    plain = torch.nn.Module
    # Batch norm's own method only mends files of old versions, which the metadata of ours never are.
    known = (plain._load_from_state_dict, torch.nn.modules.batchnorm._NormBase._load_from_state_dict)
    for module in value.modules():
        kind = type(module)
        hooked = module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks or module._state_dict_hooks
        custom = kind.load_state_dict is not plain.load_state_dict or kind.state_dict is not plain.state_dict
        custom = custom or kind._load_from_state_dict not in known
        if hooked or custom or kind.get_extra_state is not plain.get_extra_state:
            return None
    try:
        tree, tensors = flatten(value.state_dict())
    except StateNotSupported:
        return None
    return (tree, tensors) if all(_is_plain(tensor) for tensor in tensors.values()) else None


def _is_plain(tensor: Any) -> bool:
    if tensor.device.type != "cpu" or type(tensor).__name__ != "Tensor":
        return False
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
