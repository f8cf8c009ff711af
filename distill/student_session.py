"""The trainer's part of a student that reads through teachers: the ring, the IO process, tickets, and waiting.

A session lives from the first batch of a DistillReader to its close. For each batch it hands out a ticket, and for
each token that comes back it waits until the predictions are there. Waiting is measured: that is the starvation of a
student.

Invariant: every batch of an iteration is answered exactly once, in the order of its tokens. A slot whose batch was
posted is given to nobody else before its predictions were taken or the IO process said that it writes nothing there
any more.
"""

import logging
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, multiprocessing

from distill import errors, slot_batches
from distill.errors import DistillError, NoTeacher
from distill.io_link import IoLink
from distill.io_messages import NO_SLOT, Abandoned, Done, GaveUp, Go, Part, Post
from distill.io_settings import IoSettings
from distill.loaders import Ticket, Token
from distill.reader_options import HARD_LABELS, ReaderOptions
from distill.ring import Control, Ring, Slots, fence
from distill.slot_batches import Filling
from distill.slot_tensors import SlotTensors
from distill.timeline import Timeline

logger = logging.getLogger(__name__)

#: slots: this many times as many as can be read ahead, for batches that the user keeps; an unused one costs nothing
_SPARE = 4
_LOOK_EVERY_S = 0.1
_LOG_EVERY_S = 10.0
_AGREE_EVERY_S = 0.5

RowShapes = Mapping[str, Sequence[int]]
#: checks teachers with the items of a batch: (teachers, items by name) -> what is agreed on
Preflight = Callable[[Sequence[Any], Mapping[str, Tensor]], Go]


@dataclass
class ReaderStats:
    """What a DistillReader has done, from its begin."""

    batches: int = 0
    samples: int = 0
    #: seconds that the trainer waited for teachers
    waited_s: float = 0.0
    #: batches that were given out without predictions (on_no_teacher="hard_labels")
    unanswered: int = 0
    #: batches that came without a slot: the user keeps too many, or the loader cannot be wrapped
    outside_of_ring: int = 0
    #: times that the IO process was started again
    respawns: int = 0
    #: requests that were sent again after a failure, and that a second teacher was asked besides; up to a second old
    retried: int = 0
    hedged: int = 0
    #: batches answered by each teacher
    by_teacher: dict[str, int] | None = None

    @property
    def starved(self) -> float:
        """Seconds of waiting for teachers per batch."""
        return self.waited_s / self.batches if self.batches else 0.0


class Answered(NamedTuple):
    """A batch with its predictions, in the order of `predicts`; `valid` is False where they are only zeros."""

    nest: Any
    predictions: list[Tensor]
    rows: int
    valid: bool


class _Parcel:
    """A batch outside of slots: memory of its own for its predictions and for the tensors that are not shared."""

    def __init__(self, seq: int, nest: Any, ins: Sequence[str | None], size_bytes: int) -> None:
        self.nest = nest
        self._fd = os.memfd_create("edl-distill-batch", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size_bytes)
        self.memory = memoryview(mmap.mmap(self._fd, size_bytes))
        items = slot_batches.named_items(nest, ins)
        filling = Filling(self.memory)
        self.descriptors = [self._fd]
        self._keep: list[Any] = []
        places = {}
        lent: dict[str, int] = {}
        for name, item in items.items():
            shared = _descriptor(item)
            if shared is None:
                places[name] = filling.store(item)
            else:
                fd, offset = shared
                lent[name] = len(self.descriptors)
                self.descriptors.append(fd)
                self._keep.append(item)
                places[name] = slot_batches.InSlot(item.dtype, tuple(item.shape), offset)
        rows, parts = slot_batches.parts_of(places, [name for name in ins if name is not None])
        placed = tuple(Part(p.name, p.datatype, p.shape, p.offset, lent.get(p.name, 0)) for p in parts)
        self.rows = rows
        self.post = Post(seq, NO_SLOT, rows, filling.end, placed)

    def close(self) -> None:
        os.close(self._fd)


def _descriptor(item: Any) -> tuple[int, int] | None:
    """Descriptor and offset of a tensor that lies in shared memory, as DataLoader workers hand it over."""
    if not isinstance(item, Tensor) or not item.is_contiguous() or item.device.type != "cpu":
        return None
    storage = item.untyped_storage()
    if not storage.is_shared() or multiprocessing.get_sharing_strategy() != "file_descriptor":  # type: ignore[no-untyped-call]
        return None
    fd: int = storage._share_fd_cpu_()[0]
    return fd, int(item.storage_offset()) * item.element_size()


class StudentSession:
    """See the module. `ahead` is how many batches can be under way at once."""

    def __init__(
        self,
        options: ReaderOptions,
        settings: IoSettings | None,
        predicts: Sequence[str],
        ins: Sequence[str | None],
        ahead: int,
        preflight: Preflight | None,
        row_shapes: RowShapes,
    ) -> None:
        self._options = options
        self._predicts, self._ins = tuple(predicts), tuple(ins)
        #: None once it has been done
        self._preflight = preflight
        self._agree_again_s = 0.0
        self._unreached_since_s: float | None = None
        self._why_unreached = ""
        #: of one row of each output, for batches without predictions
        self._row_shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in row_shapes.items()}
        self.ring = Ring(_SPARE * (ahead + 2), options.slot_mb << 20)
        self._slots = Slots(self.ring)
        self._control = Control(self.ring)
        self._timeline = Timeline.create(options.timeline, "trainer") if options.timeline else None
        #: None in nop mode
        self.link = None if settings is None else IoLink(settings, self.ring)
        self.stats = ReaderStats(by_teacher={})
        self._next_seq = 1
        #: slots of tickets whose batches were not taken yet
        self._issued: dict[int, int] = {}
        self._parcels: dict[int, _Parcel] = {}
        self._tensors: dict[int, SlotTensors] = {}
        if preflight is None and self.link is not None:
            self.link.go(Go(tuple(name for name in ins if name is not None)))

    def current_stats(self) -> ReaderStats:
        """The stats, with what the IO process counts."""
        if self.link is not None:
            self.stats.retried, self.stats.hedged = self.link.counts
        return self.stats

    # ---- tickets --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """An iteration begins: what is left of the one before ends here."""
        if self.link is not None:
            self.link.cancel(self._next_seq)
        for slot in self._issued.values():
            self._free(slot)
        self._issued.clear()
        for parcel in self._parcels.values():
            parcel.close()
        self._parcels.clear()

    def issue(self) -> Ticket:
        ticket = Ticket(self._next_seq, self._slots.take())
        self._next_seq += 1
        self._issued[ticket.seq] = ticket.slot
        return ticket

    def post_whole(self, batch: Any) -> Token:
        """Post a batch that came from a loader which cannot be wrapped."""
        seq = self._next_seq
        self._next_seq += 1
        return self._post_parcel(Token(seq, NO_SLOT, 0, batch))

    def posted(self, token: Token) -> Token:
        """See that the batch of a token is posted: one that came whole is posted here."""
        return token if token.slot != NO_SLOT else self._post_parcel(token)

    def _post_parcel(self, token: Token) -> Token:
        self._free(self._issued.pop(token.seq, NO_SLOT))  # it did not fit
        parcel = _Parcel(token.seq, token.nest, self._ins, self._options.slot_mb << 20)
        self._parcels[token.seq] = parcel
        if self.link is not None:
            self.link.post(parcel.post, parcel.descriptors)
        return token._replace(rows=parcel.rows)

    def _free(self, slot: int) -> None:
        if slot != NO_SLOT:
            self.ring.clear(slot)
            self._slots.give_back(slot)

    # ---- answers --------------------------------------------------------------------------------------------------

    def answer(self, token: Token) -> Answered:
        """Wait for the predictions of a batch and put both together."""
        if token.slot == NO_SLOT:
            tensors, nest, answer = self._answer_parcel(token)
        else:
            tensors = self._tensors_of(token.slot)
            nest = slot_batches.restore(tensors, token.nest)
            answer = self._wait(token, nest)
            self.ring.clear(token.slot)
            del self._issued[token.seq]
            self._slots.lend(token.slot, tensors)
        predictions = self._predictions(answer, tensors, token.rows)
        self.stats.batches += 1
        self.stats.samples += token.rows
        self._control.write(self.stats.samples, self.stats.batches, self.stats.waited_s, 0.0)
        return Answered(nest, predictions, token.rows, isinstance(answer, Done))

    def _tensors_of(self, slot: int) -> SlotTensors:
        tensors = self._tensors.get(slot)
        if tensors is None:
            tensors = self._tensors[slot] = SlotTensors(self.ring.slot(slot))
        tensors.renew()
        return tensors

    def _answer_parcel(self, token: Token) -> tuple[slot_batches.Tensors, Any, Done | Abandoned | None]:
        parcel = self._parcels[token.seq]
        answer = self._wait(token, parcel.nest)
        self._parcels.pop(token.seq).close()
        self.stats.outside_of_ring += 1
        return slot_batches.Views(parcel.memory), parcel.nest, answer

    def _predictions(self, answer: Done | Abandoned | None, tensors: slot_batches.Tensors, rows: int) -> list[Tensor]:
        if not isinstance(answer, Done):
            return [torch.zeros(rows, *self._row_shape(name)) for name in self._predicts]
        assert self.stats.by_teacher is not None
        self.stats.by_teacher[answer.teacher] = self.stats.by_teacher.get(answer.teacher, 0) + 1
        for part in answer.outputs:
            self._row_shapes.setdefault(part.name, part.shape[1:])
        return [slot_batches.prediction(tensors, part, self._options.as_float32) for part in answer.outputs]

    def _row_shape(self, name: str) -> tuple[int, ...]:
        try:
            return self._row_shapes[name]
        except KeyError:
            raise NoTeacher(
                f"no teacher has answered yet, so the shape of {name!r} is unknown: give predict_shapes={{{name!r}: "
                "(classes,)} for batches without predictions"
            ) from None

    def _wait(self, token: Token, nest: Any) -> Done | Abandoned | None:
        """The answer to a batch; None in nop mode."""
        if self.link is None:
            return None
        answer = self.link.take(token.seq, token.slot)
        if answer is None:
            answer = self._wait_long(self.link, token, nest)
        if isinstance(answer, GaveUp):
            kind = getattr(errors, answer.kind, DistillError)
            raise kind(answer.reason)
        return answer

    def _wait_long(self, link: IoLink, token: Token, nest: Any) -> Done | GaveUp | Abandoned:
        began_s = time.monotonic()
        self._control.write(self.stats.samples, self.stats.batches, self.stats.waited_s, began_s, token.seq)
        fence()
        patience = _Patience(self._options, began_s)
        try:
            while True:
                if self._preflight is not None:
                    self._agree(link, self._preflight, nest)
                answer = link.take(token.seq, token.slot)
                if answer is not None:
                    self.stats.unanswered += isinstance(answer, Abandoned)
                    return answer
                if patience.is_over(*self._alone(link)):
                    link.abandon(token.seq)
                link.wait(_LOOK_EVERY_S)
        finally:
            now_s = time.monotonic()
            self.stats.waited_s += now_s - began_s
            self.stats.respawns = link.respawns
            if self._timeline is not None:
                self._timeline.span("trainer", "wait for teachers", began_s, now_s, seq=token.seq)

    def _agree(self, link: IoLink, preflight: Preflight, nest: Any) -> None:
        """Check the teachers as soon as there are any, with the items of this batch."""
        now_s = time.monotonic()
        if link.status is None or not link.status.teachers or now_s < self._agree_again_s:
            return
        try:
            go = preflight(link.status.as_teachers(), slot_batches.named_items(nest, self._ins))
        except NoTeacher as error:
            self._unreached_since_s = self._unreached_since_s or now_s
            self._why_unreached = str(error)
            self._agree_again_s = time.monotonic() + _AGREE_EVERY_S
            return
        self._preflight, self._unreached_since_s = None, None
        self._row_shapes |= {name: _known(shape) for name, shape in go.row_shapes.items()}
        link.go(go)

    def _alone(self, link: IoLink) -> tuple[float, str]:
        """For how long no teacher could be expected to answer, in seconds, and why; 0 while one can."""
        now_s = time.monotonic()
        if self._unreached_since_s is not None:
            return max(1e-3, now_s - self._unreached_since_s), self._why_unreached
        if link.status is None or link.status.none_since_s is None:
            return 0.0, ""
        return max(1e-3, now_s - link.status.none_since_s), link.status.why_none or ""

    def close(self) -> None:
        """End the IO process; batches that the user keeps stay valid."""
        if self.link is not None:
            self.link.close()
        for parcel in self._parcels.values():
            parcel.close()
        self._parcels.clear()
        self._tensors.clear()
        self.ring.close()
        if self._timeline is not None:
            self._timeline.finish()


class _Patience:
    """How long a student waits while there is no teacher."""

    def __init__(self, options: ReaderOptions, began_s: float) -> None:
        self._options = options
        self._began_s = began_s
        self._next_log_s = began_s + min(1.0, _LOG_EVERY_S)
        self._abandoned = False

    def is_over(self, alone_s: float, why: str) -> bool:
        """Whether to go on without predictions, once. Raises NoTeacher when the time limit is over."""
        now_s = time.monotonic()
        if not alone_s:
            if now_s >= max(self._next_log_s, self._began_s + _LOG_EVERY_S):
                self._next_log_s = now_s + _LOG_EVERY_S
                logger.warning("waiting for predictions for %.0f s, though teachers answer", now_s - self._began_s)
            return False
        if self._options.on_no_teacher == HARD_LABELS:
            if self._abandoned or alone_s < self._options.hard_labels_after_s:
                return False
            self._abandoned = True
            return True
        limit_s = self._options.no_teacher_timeout_s
        if min(alone_s, now_s - self._began_s) >= limit_s:
            raise NoTeacher(
                f"no teacher for {alone_s:.0f} s: {why}; no_teacher_timeout_s "
                f"(EDL_DISTILL_NO_TEACHER_TIMEOUT_S) is {limit_s:g}"
            )
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + _LOG_EVERY_S
            logger.warning("waiting for teachers for %.0f s: %s", alone_s, why)
        return False


def _known(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(size or 1 for size in shape)
