"""What to load and how to run it: the front's side of a model process. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sealane.security.sealing_policy import SealingPolicy
from sealane.tensors import Array
from sealane_worker.control import Json
from sealane_worker.model.queueing import Batching

Step = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Sequencing:
    """How a variant keeps sequences; see ``sealane.type.v1.SequenceBatching``.

    Attributes:
        max_idle_seconds: a sequence of which nothing is heard for so long is over.
        controls: input of the model -> what it tells: START, READY, END or CORRID.
        states: input of the model -> output that it takes its value from.
    """

    max_idle_seconds: float
    controls: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)


#: Has a function called, once and on any thread, when nobody waits any more; at once where nobody does already.
OnCancel = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Serving:
    """How a variant wants to be served; see ``sealane.type.v1.Manifest``.

    Attributes:
        device: where to run it.
        threads: processor threads for one run; 0 takes the worker's setting.
        instances: runs at the same time.
        batching: how requests are put together.
        before: steps before the model.
        after: steps after the model.
        memory_limit_bytes: most memory of the process; 0 takes the worker's setting.
        deterministic: whether equal requests of one caller may share a run.
        sequencing: how sequences are kept; None for a model without.
        sealing: what is demanded of callers, and of this worker.
    """

    device: str = "cpu"
    threads: int = 0
    instances: int = 1
    batching: Batching = field(default_factory=Batching)
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    memory_limit_bytes: int = 0
    deterministic: bool = False
    sequencing: Sequencing | None = None
    sealing: SealingPolicy = field(default_factory=SealingPolicy)


class Files(Protocol):
    """The files of a model on this machine, for as long as somebody needs them."""

    def take(self) -> None:
        """Have them there, every one verified, where they were given back; raises SealaneError."""
        ...

    def give_back(self) -> None:
        """Nobody needs them any more: what must not stay is wiped. A repeat is no error."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What to load.

    Attributes:
        runtime: name of the runtime.
        path: the model's file or folder on this machine.
        threads: processor threads for one inference where the variant does not say.
        serving: how the variant wants to be served.
        warm_up: recorded requests, in order.
        files: taken already, given back when the model leaves memory, and taken before it is loaded again.
    """

    runtime: str
    path: Path
    threads: int = 1
    serving: Serving = field(default_factory=Serving)
    warm_up: tuple[WarmRequest, ...] = field(default=(), compare=False)
    files: Files | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What the worker's operator allows its models.

    Attributes:
        sandbox: lowest level of the sandbox to run models at: ``none``, ``partial`` or ``full``.
        executable: whether formats and steps that hold code may be loaded.
        settings: what runtimes are told, such as the endpoints behind them.
        memory_limit_bytes: most memory of one model process; 0 sets none.
        pythons: runtime -> Python interpreter of an environment that has it.
        native: whether models have slots for the native front.
    """

    sandbox: str = "none"
    executable: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    memory_limit_bytes: int = 0
    pythons: Mapping[str, str] = field(default_factory=dict)
    native: bool = False


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """A recorded request: run before the model is called ready.

    Attributes:
        inputs: tensors by name.
        signature: signature name; empty for the default one.
    """

    inputs: Mapping[str, Array]
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One inference to run.

    Attributes:
        inputs: tensors by name, already checked against the signature.
        signature: signature name.
        deadline: ``time.monotonic()`` value.
        outputs: names wanted; empty for all.
        priority: 1 is the highest; 0 takes the model's default.
        flow: number of the project that asks; the queue is fair between them.
        on_cancel: where to hear that nobody waits for it any more.
    """

    inputs: Mapping[str, Array]
    signature: str
    deadline: float
    outputs: tuple[str, ...] = ()
    priority: int = 0
    flow: int = 0
    on_cancel: OnCancel | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run gave.

    Attributes:
        outputs: tensors by name.
        seconds: time that the model took, for the whole batch.
        queue_seconds: time in the model's queue.
        batch_rows: rows of the batch that it ran in.
    """

    outputs: dict[str, Array]
    seconds: float
    queue_seconds: float = 0.0
    batch_rows: int = 1


def size_on_disk(path: Path) -> int:
    """Bytes of a model's file, or of all files in its folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
