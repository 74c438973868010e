"""The queue, and a thread for each card that draws what is in it, one picture at a time."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError
from ..progress import SECONDS
from ..reading import shown
from .loaded import LoadedBundle, Names, Order, Result, drawn_steps, needed_bytes

logger = logging.getLogger(__name__)
LEASE = 30  # seconds after which a drawing ends that nobody asks for any more
KEPT_JOBS = 50  # that are done and can still be asked for
KEPT_BYTES = 64 << 20  # of pictures of all of them
WAITING, DRAWING, DONE, FAILED, INTERRUPTED = "waiting", "drawing", "done", "failed", "interrupted"
OVER = (DONE, FAILED, INTERRUPTED)


class QueueFull(Exception):
    """No room for another drawing."""


class _Stopped(Exception):
    """Somebody ended the drawing, or nobody wants it any more."""


@dataclass(eq=False)
class Job:
    """An order on its way; its fields change while it is drawn."""

    order: Order
    leased: bool  # whether it ends when nobody asks for it
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: str = WAITING
    loading: bool = False
    card: int | None = None
    number: int = 0  # of the picture that is drawn, from 0
    step: int = 0  # of it that are done
    preview: bytes | None = None  # PNG
    results: list[Result] = field(default_factory=list)
    error: str = ""
    asked_for: float = field(default_factory=time.monotonic)
    created: float = field(default_factory=time.time)
    started: float = 0.0  # monotonic
    #: The job itself, when it is over
    over: Future[Job] = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def steps(self) -> int:
        """Of one picture."""
        picture = self.order.picture
        return drawn_steps(picture.steps, picture.strength)

    @property
    def progress(self) -> float:
        """0 to 1, of all its pictures' steps."""
        if self.state in OVER:
            return 1.0
        return (self.number * self.steps + self.step) / (self.order.count * self.steps)

    @property
    def unwanted(self) -> bool:
        """Whether it is to end."""
        return self.stop.is_set() or (self.leased and time.monotonic() - self.asked_for > LEASE)


class Card:
    """A card, or this host in the place of one, and the bundles that are loaded on it, the one that ran last at the end."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.loaded: OrderedDict[str, LoadedBundle] = OrderedDict()
        self.job: Job | None = None
        self.provider = ""
        self.told = ""  # the last change of what is loaded, for people
        self.ready = False


class Engine:
    """Draws orders. Its methods may be called from any thread."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        *,
        devices: Sequence[int] = (0,),
        runtime: str = "auto",
        threads: int = 0,
        most_waiting: int = 16,
        memory: int | None = None,
        preview_every: int = 1,
    ) -> None:
        """
        Args:
            devices: numbers of the cards.
            runtime, threads: as in `axbake.runtime.session.open_model`.
            most_waiting: orders that wait at once.
            memory: bytes of each card that models may take; None: what it has.
            preview_every: steps from one preview to the next; 0: none.
        """
        self.names = Names(bundles)
        self.most_waiting, self.preview_every = most_waiting, preview_every
        self.cards = [Card(number) for number in devices]
        self._how = {"runtime": runtime, "threads": threads}
        self._memory = memory
        self._waiting: deque[Job] = deque()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._loading = threading.Lock()  # drivers are initialised once a process
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=[card], name=f"card {card.number}", daemon=True)
            for card in self.cards
        ]

    def start(self) -> None:
        """Load the first bundle on every card, draw one picture to warm up, and take orders."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End what is drawn and waits, and the threads."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def ready(self) -> bool:
        """Whether every card has warmed up."""
        return all(card.ready for card in self.cards)

    @property
    def waiting(self) -> int:
        """Number of orders that wait."""
        with self._changed:
            self._drop_unwanted()
            return len(self._waiting)

    def drawing(self) -> list[Job]:
        """What is drawn now."""
        return [job for card in self.cards if (job := card.job) is not None]

    def submit(self, order: Order, *, leased: bool = False) -> Job:
        """Put *order* into the queue.

        Raises:
            QueueFull: too many wait already.
        """
        job = Job(order, leased)
        with self._changed:
            self._drop_unwanted()
            if len(self._waiting) >= self.most_waiting:
                raise QueueFull(
                    f"{len(self._waiting)} drawings are waiting, and no more than {self.most_waiting} may. Try again later."
                )
            self._waiting.append(job)
            self._jobs[job.id] = job
            self._forget()
            self._changed.notify_all()
        return job

    def job(self, name: str) -> Job | None:
        """The job of that id, which is asked for by this; None if it is not known any more."""
        with self._changed:
            job = self._jobs.get(name)
        if job:
            job.asked_for = time.monotonic()
        return job

    def result(self, name: str) -> Result | None:
        """The picture of that name."""
        with self._changed:
            return next((one for job in self._jobs.values() for one in job.results if one.name == name), None)

    def ahead(self, job: Job) -> int:
        """How many orders wait before *job*."""
        with self._changed:
            return self._waiting.index(job) if job in self._waiting else 0

    def interrupt(self, job: Job) -> None:
        """End *job* before its next step."""
        job.stop.set()
        with self._changed:
            self._drop_unwanted()
            self._changed.notify_all()

    def _drop_unwanted(self) -> None:
        for job in [job for job in self._waiting if job.unwanted]:
            self._waiting.remove(job)
            _end(job, INTERRUPTED)

    def _forget(self) -> None:
        """Forget the oldest jobs that are over, beyond `KEPT_JOBS` and `KEPT_BYTES`."""
        over = [job for job in self._jobs.values() if job.state in OVER]
        sizes = [sum(len(result.png) for result in job.results) for job in over]
        for number, job in enumerate(over):
            if len(over) - number > KEPT_JOBS or sum(sizes[number:]) > KEPT_BYTES:
                del self._jobs[job.id]

    def _next(self, card: Card) -> Job | None:
        """The next job for *card*; None when the engine closes.

        The oldest, unless another card that is idle has its bundle loaded and this one has not.
        """
        with self._changed:
            while True:
                self._drop_unwanted()
                if self._closed:
                    return None
                for job in self._waiting:
                    bundle = job.order.bundle
                    others = (other for other in self.cards if other.ready and other.job is None and other is not card)
                    if bundle in card.loaded or not any(bundle in other.loaded for other in others):
                        self._waiting.remove(job)
                        card.job, job.card, job.state = job, card.number, DRAWING
                        job.started = time.monotonic()
                        return job
                self._changed.wait(timeout=SECONDS)

    def _work(self, card: Card) -> None:
        self._warm_up(card)
        while job := self._next(card):
            try:
                self._draw(card, job)
                state = DONE
            except _Stopped:
                state = INTERRUPTED
            except BundleError as error:
                state, job.error = FAILED, shown(error, 2000)
                logger.error("card %d: %s", card.number, job.error)
            except Exception as error:
                # Of a driver or a runtime; what is loaded is not trusted any more.
                logger.exception("card %d: drawing failed", card.number)
                state, job.error = FAILED, f"the drawing failed ({type(error).__name__}); the server's log says more"
                self._unload(card, job.order.bundle)
            with self._changed:
                card.job = None
                _end(job, state)
                self._forget()
                self._changed.notify_all()
            logger.info("%s: %s, %d of %d pictures", job.order.bundle, state, len(job.results), job.order.count)

    def _warm_up(self, card: Card) -> None:
        """Load the first bundle and draw its own picture in the fewest steps, so that the first client does not wait for it."""
        bundle = self.names.first
        try:
            loaded = self._load(card, bundle.manifest["model"])
            if not bundle.canvas:
                picture = replace(bundle.picture, steps=self.names.steps[bundle.manifest["model"]][0])
                loaded.draw(Order(bundle.manifest["model"], picture), 0, self._end_if_closed)
        except _Stopped:
            pass
        except (BundleError, OSError, RuntimeError) as error:
            card.told = f"warming up failed: {shown(error)}"
            logger.error("card %d: %s", card.number, card.told)
        with self._changed:
            card.ready = True
            self._changed.notify_all()

    def _end_if_closed(self, finished: np.ndarray | None) -> None:
        if self._closed:
            raise _Stopped

    def _draw(self, card: Card, job: Job) -> None:
        job.loading = job.order.bundle not in card.loaded
        loaded = self._load(card, job.order.bundle)
        job.loading = False
        for number in range(job.order.count):
            job.number, job.step = number, 0
            job.results.append(loaded.draw(job.order, number, self._watch(loaded, job)))

    def _watch(self, loaded: LoadedBundle, job: Job) -> Callable[[Any], None]:
        def watch(finished: np.ndarray | None) -> None:
            if job.unwanted:
                raise _Stopped
            if finished is None:
                return
            job.step += 1
            if self.preview_every and job.step % self.preview_every == 0:
                job.preview = loaded.preview.png(finished) or job.preview

        return watch

    def _load(self, card: Card, name: str) -> LoadedBundle:
        """The bundle *name*, loaded on *card*; others that do not fit beside it leave, those that ran longest ago first."""
        if name in card.loaded:
            card.loaded.move_to_end(name)
            return card.loaded[name]
        how: dict[str, Any] = {**self._how, "device": card.number}
        with self._loading:
            bundle = self.names.all[name]
            places = {"runtime": how["runtime"], "device": how["device"]}
            needed, most = needed_bytes(bundle, **places)
            most = self._memory if self._memory is not None else most
            others = {one: needed_bytes(loaded.bundle, **places)[0] for one, loaded in card.loaded.items()}
            for other in list(card.loaded):
                if most is None or needed + sum(others[one] for one in card.loaded) > most:
                    self._unload(card, other)
            loaded = LoadedBundle(bundle, **how)
        card.loaded[name] = loaded
        card.provider = loaded.models.denoiser.provider
        logger.info("card %d: loaded %s in %.1f s, runs on %s", card.number, name, loaded.load_seconds, card.provider)
        return loaded

    def _unload(self, card: Card, name: str) -> None:
        if loaded := card.loaded.pop(name, None):
            loaded.leave()
            card.told = f"{name} was unloaded to make room"
            logger.info("card %d: unloaded %s", card.number, name)


def _end(job: Job, state: str) -> None:
    job.state, job.preview = state, None
    job.over.set_result(job)
