"""One optimizer step over all ranks: Horovod's DistributedOptimizer, the vote to stop, and the mark of a torn step.

Parameters change only after every gradient was reduced, so a rank that fails before holds the previous step whole; a
rank that fails while they change is torn and says so. Knows Horovod's private fields, and is the only module that does.
"""

from typing import Any

import horovod.torch as hvd
import torch

from edl_collective.waiting import wait


class _Reducible:
    """Horovod's "compression": gradients as Horovod can reduce them, which are contiguous and not bfloat16.

    Gradients of channels_last weights are not contiguous; a rank without samples gives contiguous zeros for them. Both
    are reduced in the order of the logical shape, so they add up.
    """

    @staticmethod
    def compress(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = gradient.float() if gradient.dtype is torch.bfloat16 else gradient
        return wide.contiguous(), gradient

    @staticmethod
    def decompress(reduced: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return gradient if reduced.data_ptr() == gradient.data_ptr() else gradient.copy_(reduced)


class Reducer:
    """Wraps `optimizer` for the worlds of this process; construct it inside the first world.

    Gradients are summed (op=Sum): the caller divides each loss by the global number of samples.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: "torch.amp.GradScaler | None",
        clip_norm: float | None,
    ) -> None:
        # Frozen parameters too: Horovod wants a name for each that the optimizer holds, and reduces only the others.
        named = list(model.named_parameters())
        self.optimizer: Any = hvd.DistributedOptimizer(
            optimizer, named_parameters=named, op=hvd.Sum, compression=_Reducible
        )
        if optimizer.state:
            self.optimizer.load_state_dict(optimizer.state_dict())
        self._scaler = scaler
        self._clip_norm = clip_norm
        self._names: dict[torch.nn.Parameter, str] = dict(self.optimizer._parameter_names)
        self._vote = False
        self._vote_name = "edl.vote"
        #: True while parameters change: this rank's state is then of no step
        self.torn = False

    def enter_world(self, generation: int) -> None:
        """Name what is reduced after the generation, which is the same on all ranks.

        A tensor that is enqueued at the moment when Horovod shuts down stays in its queue for the next world. Under the
        same name it would be taken there for this rank's new gradient.
        """
        self.optimizer._parameter_names = {p: f"{generation}.{name}" for p, name in self._names.items()}
        self._vote_name = f"edl.vote.{generation}"

    def open_step(self, stop: bool) -> None:
        """Vote on stopping after this step; the vote travels with the last of the gradients that follow."""
        self._vote = stop

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(loss if self._scaler is None else self._scaler.scale(loss))

    def step(self) -> bool:
        """Reduce, update, clear the gradients. True when some rank voted to stop.

        Raises HorovodInternalError when a member died before all gradients were reduced; nothing has changed then.
        """
        # Not earlier: it would set off a cycle of Horovod's, and the gradients would wait for the next one (1 ms).
        votes = None
        if hvd.size() > 1:
            votes = hvd.allreduce_async(torch.tensor([float(self._vote)]), op=hvd.Sum, name=self._vote_name)
        # The vote first: when it is there, so are the gradients that were enqueued before it, mostly.
        stop = self._vote if votes is None else bool(wait(votes)[0] > 0)
        self.optimizer.synchronize()
        if self._clip_norm is not None:
            if self._scaler is not None:
                self._scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        self.torn = True
        with self.optimizer.skip_synchronize():
            if self._scaler is None:
                self.optimizer.step()
            else:
                self._scaler.step(self.optimizer)
                self._scaler.update()
        self.torn = False
        self.optimizer.zero_grad()
        return stop

    def forget_step(self) -> None:
        """Drop a step that failed half-way; call after Horovod was shut down, when its handles mean nothing."""
        self.optimizer._handles.clear()
        self.optimizer._synchronized = False
        for parameter in self.optimizer._allreduce_delay:
            self.optimizer._allreduce_delay[parameter] = self.optimizer.backward_passes_per_step
        self.optimizer.zero_grad()
