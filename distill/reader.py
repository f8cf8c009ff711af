"""DistillReader: a DataLoader, or a generator, whose batches come with a teacher's predictions.

    reader = DistillReader(loader, ins=["image"], predicts=["logits"])
    reader.set_fixed_teacher("10.0.0.5:8500,10.0.0.6:8500")
    for epoch in range(epochs):
        for images, labels, logits in reader:   # what the loader yields, and the predictions behind it
            ...

Each iteration is one epoch, as the loader has it; ending one early is fine. The order is the loader's, each batch
comes once, whatever happens to teachers. One iteration at a time; one thread.
"""

import copy
import itertools
import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from distill import loaders, reader_options, slot_batches
from distill.errors import ConfigError, DistillError
from distill.generators import End, Epochs, Generator, Kind, loader_of, samples_of
from distill.io_settings import DynamicTeachers, IoSettings
from distill.limits import Limits
from distill.loaders import ReadAhead, SlotCollate, Token
from distill.preflight import Demand, agree
from distill.reader_options import ReaderOptions
from distill.records import Normalisation
from distill.slot_batches import Samples
from distill.source import parse_teachers
from distill.student_session import Preflight, ReaderStats, RowShapes, StudentSession
from edl_collective.loader_workers import LoaderWorkers

logger = logging.getLogger(__name__)


class DistillReader:
    """Yields what `loader` yields with the teacher's predictions appended.

    Args:
        loader: a DataLoader, or any iterable of batches; None if a generator is set.
        ins: the names, for the teacher, of the batch's items in their order; None for one that it does not get, and
        those
            at the end may be left out. The keys that it gets, where batches are mappings.
        predicts: the teacher's outputs that are wanted, in the order in which they are appended.
        sample_generator, sample_list_generator, batch_generator: instead of a loader, as the set_ methods have them.
        predict_shapes: shape of one row of each output, for the check of teachers, and for zeros (`nop`, and
            `on_no_teacher="hard_labels"` before any teacher has answered).
        normalisation: what teachers must do to pixels; None: whatever they do.
        options: fields of ReaderOptions: teachers=, service=, teacher_batch_size=, on_no_teacher=, timeline=, ...

    A batch of tuples gets predictions [batch, ...] (CPU, as the teacher answers) as further items, and with
    `on_no_teacher="hard_labels"` a mask [batch] (bool) behind them, False where there are none. The options can be
    overridden from outside, by the environment or a file: see ReaderOptions.

    Raises ConfigError for options that cannot be; while iterating NoTeacher, Mismatch, TeacherRefused, and whatever the
    loader raises.
    """

    def __init__(
        self,
        loader: Iterable[Any] | None = None,
        *,
        ins: Sequence[str | None],
        predicts: Sequence[str],
        sample_generator: Generator | None = None,
        sample_list_generator: Generator | None = None,
        batch_generator: Generator | None = None,
        predict_shapes: RowShapes | None = None,
        normalisation: Normalisation | None = None,
        **options: Any,
    ) -> None:
        if not predicts or not any(name is not None for name in ins):
            raise ConfigError("ins= must name an item that the teacher gets, and predicts= an output of its")
        self._loader = loader
        self._ins, self._predicts = tuple(ins), tuple(predicts)
        self._row_shapes: dict[str, Sequence[int]] = dict(predict_shapes or {})
        self._normalisation = normalisation
        self._options = _replace(ReaderOptions(), options)
        self._generator: Generator | None = None
        self._kind = Kind.BATCH
        self._session: StudentSession | None = None
        self._tokens: Iterable[Token] | None = None
        self._workers = LoaderWorkers()
        self._iteration = 0
        self._ended: weakref.finalize[Any, Any] | None = None
        #: of a loader with a state: its states after the batches that were read ahead, by sequence number, and after
        #: the batch that was given out last; None: as the loader says itself
        self._states: dict[int, Any] = {}
        self._state: Any = None
        for kind, generator in (
            (Kind.SAMPLE, sample_generator),
            (Kind.SAMPLE_LIST, sample_list_generator),
            (Kind.BATCH, batch_generator),
        ):
            if generator is not None:
                self._set_generator(generator, kind)

    # ---- settings -------------------------------------------------------------------------------------------------

    def set_fixed_teacher(self, teachers: str | Sequence[str]) -> None:
        """Ask these, "host:port,https://host:port" or a sequence of such. Raises ConfigError."""
        text = teachers if isinstance(teachers, str) else ",".join(teachers)
        parse_teachers(text)
        self._set(teachers=text, service=None)

    def set_dynamic_teacher(
        self, service: str, *, zookeeper: str | None = None, root: str | None = None, max_teachers: int | None = None
    ) -> None:
        """Ask the teachers of a service, as they come and go; at most `max_teachers` at once."""
        self._set(service=service, teachers=None, max_teachers=max_teachers)
        if zookeeper is not None:
            self._set(zookeeper=zookeeper)
        if root is not None:
            self._set(root=root)

    def set_teacher_batch_size(self, rows: int) -> None:
        """Divide batches into requests of at most `rows` rows. Raises ConfigError."""
        if rows < 1:
            raise ConfigError(f"teacher_batch_size must be at least 1, not {rows}")
        self._set(teacher_batch_size=rows)

    def _set(self, **changes: Any) -> None:
        if self._session is not None:
            raise DistillError("a DistillReader that was iterated over is not changed: make another one")
        self._options = _replace(self._options, changes)

    def set_sample_generator(self, generator: Generator) -> None:
        """Read samples, tuples of values, from `generator()`, one epoch per call; samples come out."""
        self._set_generator(generator, Kind.SAMPLE)

    def set_sample_list_generator(self, generator: Generator) -> None:
        """Read lists of samples from `generator()`; lists of samples come out."""
        self._set_generator(generator, Kind.SAMPLE_LIST)

    def set_batch_generator(self, generator: Generator) -> None:
        """Read batches, tuples of arrays or tensors [batch, ...], from `generator()`; batches come out."""
        self._set_generator(generator, Kind.BATCH)

    def _set_generator(self, generator: Generator, kind: Kind) -> None:
        if self._loader is not None or self._generator is not None:
            raise ConfigError("a DistillReader reads one thing: a loader, or one of the generators")
        self._set()
        self._generator, self._kind = generator, kind

    # ---- iterating ------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> ReaderStats:
        """What was read, and how long the trainer waited for teachers."""
        return ReaderStats() if self._session is None else self._session.current_stats()

    @property
    def batch_sampler(self) -> Any:
        """The loader's."""
        return getattr(self._loader, "batch_sampler", None)

    @property
    def num_workers(self) -> int:
        """The loader's: a State(loader=) that rehearses with this reader asks for it."""
        return int(getattr(self._loader, "num_workers", 0))

    def __len__(self) -> int:
        """Batches of an epoch, as the loader has them. Raises TypeError where it has no length."""
        if self._loader is None:
            raise TypeError("a DistillReader over a generator has no length")
        return len(self._loader)  # type: ignore[arg-type]

    def state_dict(self) -> Any:
        """The loader's state after the batch that was given out last, whatever has been read ahead since.

        For loaders that have one, such as torchdata's StatefulDataLoader. Raises DistillError for others.
        """
        loader = self._stateful()
        return loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: Any) -> None:
        """Let the next iteration go on behind the batch after which state_dict() gave `state`. Raises DistillError."""
        self._stateful().load_state_dict(state)
        self._state = None

    def _stateful(self) -> Any:
        if not hasattr(self._loader, "state_dict"):
            raise DistillError(
                f"the state of a {type(self._loader).__name__} cannot be saved: read from a loader that has a "
                "state_dict(), or, in an elastic job, by an ElasticBatchSampler, which is a part of State"
            )
        return self._loader

    def __call__(self) -> Iterator[Any]:
        """One epoch, as Paddle EDL's reader is used."""
        return iter(self)

    def __iter__(self) -> Iterator[Any]:
        """The rest of the loader's epoch. An iteration that is under way ends."""
        session = self._start()
        self._iteration += 1
        return self._iterate(session, self._iteration)

    def _iterate(self, session: StudentSession, iteration: int) -> Iterator[Any]:
        self._require(iteration)
        for token in self._posted(session):
            answered = session.answer(token)
            if self._states:
                self._state = self._states.pop(token.seq)
            extra: list[Any] = list(answered.predictions)
            names = self._predicts
            if self._options.on_no_teacher == reader_options.HARD_LABELS:
                extra.append(torch.full((answered.rows,), answered.valid))
                names = (*names, "mask")
            if isinstance(answered.nest, Samples):
                samples = samples_of(answered.nest, extra)
                del answered, extra
                yield from samples if self._kind is Kind.SAMPLE else [samples]
                del samples
            else:
                batch = slot_batches.append(answered.nest, names, extra)
                del answered, extra  # the user alone decides how long the slot is used
                yield self._pinned(batch)
                del batch
            self._require(iteration)
        self._state = None

    def _require(self, iteration: int) -> None:
        """Raises DistillError when another iteration took the workers, instead of ending early."""
        if iteration != self._iteration:
            raise DistillError("another iteration over this DistillReader has begun: one at a time")

    def _pinned(self, batch: Any) -> Any:
        if not getattr(self._loader, "pin_memory", False) or not torch.cuda.is_available():
            return batch
        return slot_batches.map_nest(lambda leaf: leaf.pin_memory() if isinstance(leaf, Tensor) else leaf, batch)

    def _posted(self, session: StudentSession) -> Iterator[Token]:
        """The tokens of posted batches."""
        if self._tokens is None:
            assert self._loader is not None
            session.begin()
            self._states.clear()
            whole = (self._post_whole(session, batch) for batch in self._loader)
            return iter(ReadAhead(whole, self._options.window))
        ends = isinstance(self.batch_sampler, Epochs)
        if ends:
            self.batch_sampler.epoch += 1
        filled = self._workers.iterate(self._tokens, self._epoch())
        if ends:
            filled = itertools.takewhile(lambda token: not isinstance(token.nest, End), filled)
        tokens = map(session.posted, filled)
        ahead = 0 if getattr(self._loader, "num_workers", 0) else self._options.window
        return iter(ReadAhead(tokens, ahead)) if ahead else tokens

    def _post_whole(self, session: StudentSession, batch: Any) -> Token:
        token = session.post_whole(batch)
        if hasattr(self._loader, "state_dict"):
            self._states[token.seq] = copy.deepcopy(self._stateful().state_dict())  # it reads on meanwhile
        return token

    def _epoch(self) -> int:
        """Equal for iterations over the rest of one epoch of an ElasticBatchSampler, whose workers may go on."""
        sampler = self.batch_sampler
        elastic = hasattr(sampler, "position") and hasattr(sampler, "epoch")
        return int(sampler.epoch) if elastic else -self._iteration

    # ---- begin and end --------------------------------------------------------------------------------------------

    def _start(self) -> StudentSession:
        if self._ended is not None and not self._ended.alive:
            raise DistillError("this DistillReader was closed: make another one")
        if self._session is None:
            self._options = options = _overridden(self._options)
            options.check()
            if self._generator is not None:
                self._loader = loader_of(self._generator, self._kind, self._ins, options.teacher_batch_size)
            if self._loader is None:
                raise ConfigError("a DistillReader needs a loader: pass a DataLoader, or set a generator")
            ahead = self._ahead(options)
            self._session = session = StudentSession(
                options,
                _io_settings(options, self._predicts),
                self._predicts,
                self._ins,
                ahead,
                self._make_preflight(options),
                self._row_shapes,
            )
            self._ended = weakref.finalize(self, session.close)
            if loaders.wrappable(self._loader):
                assert isinstance(self._loader, DataLoader)
                post = None if session.link is None else session.link.socket
                self._tokens = loaders.wrap(
                    self._loader,
                    session,
                    lambda collate: SlotCollate(collate, session.ring, post, self._ins),
                    options.window,
                )
        return self._session

    def _make_preflight(self, options: ReaderOptions) -> Preflight | None:
        if not options.preflight or options.nop:
            return None
        shapes = {name: tuple(shape) for name, shape in self._row_shapes.items()}
        demand = Demand(self._predicts, options.model, options.token, options.ca_file, shapes, self._normalisation)
        return lambda teachers, items: agree(teachers, {n: np.asarray(i) for n, i in items.items()}, demand)

    def _ahead(self, options: ReaderOptions) -> int:
        workers = getattr(self._loader, "num_workers", 0)
        prefetch = getattr(self._loader, "prefetch_factor", None) or 2
        return max(options.window + workers, workers * prefetch)

    def close(self) -> None:
        """End the IO process and the loader's workers; batches that were given out stay valid."""
        self._workers.end()
        self._tokens = None
        self._iteration += 1
        if self._ended is not None:
            self._ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _replace(options: ReaderOptions, changes: Mapping[str, Any]) -> ReaderOptions:
    try:
        return replace(options, **changes)
    except TypeError as error:
        raise ConfigError(f"unknown option of a DistillReader: {error}") from error


def _overridden(options: ReaderOptions) -> ReaderOptions:
    path = os.environ.get(reader_options.CONFIG)
    try:
        text = None if path is None else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{reader_options.CONFIG}={path}: {error}") from error
    return reader_options.override(options, text, os.environ)


_students = itertools.count()


def _io_settings(options: ReaderOptions, predicts: Sequence[str]) -> IoSettings | None:
    """None in nop mode. Descriptors and the ring's measures are filled in by the session."""
    if options.nop:
        return None
    teachers = parse_teachers(options.teachers) if options.teachers is not None else ()
    dynamic = None
    if options.service is not None:
        assert options.zookeeper is not None  # reader_options.override fills them in
        assert options.root is not None
        dynamic = DynamicTeachers(
            options.zookeeper,
            options.root,
            options.service,
            f"{os.uname().nodename}-{os.getpid()}-{next(_students)}",
            options.max_teachers,
            os.environ.get("EDL_JOB"),
            os.environ.get("EDL_WORKER"),
        )
    return IoSettings(
        trainer_pid=os.getpid(),
        socket_fd=-1,
        ring_fd=-1,
        slots=0,
        slot_bytes=0,
        predicts=tuple(predicts),
        teachers=tuple((t.teacher, t.url, t.model, t.model_hash) for t in teachers),
        dynamic=dynamic,
        model=options.model,
        teacher_batch_size=options.teacher_batch_size,
        token=options.token,
        ca_file=options.ca_file,
        limits=Limits(hedge_share=options.hedge_share) if options.hedge_share else Limits(hedge_share=0, hedge_burst=0),
        timeline=options.timeline,
        log_level=logger.getEffectiveLevel(),
    )
