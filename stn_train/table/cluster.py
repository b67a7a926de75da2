"""The engine on Ray: as many runs at once as there are cores, or shares of a GPU.

Each run is a task of Ray, on this machine or on a node of a cluster. Ray finds it a place and
says if its worker or node dies; all else, a run's lock, its checkpoints and its result, is in its
directory. So the directories must lie on a file system that all nodes share.
"""

import contextlib
import math
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    TaskCancelledError,
    WorkerCrashedError,
)
from typing_extensions import override

from stn_train.data.source import DATA_DIR_VARIABLE
from stn_train.errors import ConfigError, StnError
from stn_train.runs.machine import choose_device, cores, keep_freed_memory
from stn_train.runs.signals import StoppedError, StopSignals
from stn_train.table.board import Board
from stn_train.table.engines import (
    Engine,
    Event,
    EventObserver,
    Outcome,
    Tell,
    Warned,
    Work,
    run_job,
)
from stn_train.table.plan import Job

RUNS_PER_GPU = 4
"""One computes while another draws or validates."""

RETRIES = 2
"""How often a run whose worker or node died is started again."""

SECONDS_FOR_THE_LOCK = 30.0
"""How long a restarted run waits for its directory, which a lost node may still hold."""

SECONDS_TO_SAVE = 120.0
"""How long a run that is told to stop has to finish its step and save."""

SECONDS_TO_ANSWER = 10.0
"""How long an address has to answer."""

HEAD = "node:__internal_head__"
"""Ray's name for a resource that only the head node has."""

OBJECT_STORE_BYTES = 100 << 20
"""Little goes through Ray's shared memory; by default it takes a third of the machine's."""


class Room(NamedTuple):
    """What a run is given of a cluster, and how many runs fit in."""

    cpus: int
    """Cores, and so threads, of a run."""
    gpus: float
    """Share of a GPU; 0 for a run on the CPU."""
    at_once: int


def room_in(nodes: Sequence[dict[str, float]], on_gpu: bool, most: int | None) -> Room:
    """Share out the cores, or the GPUs with the cores beside them, of some nodes.

    nodes: the resources of each, as Ray names them. most: how many runs at once at most, None
    for one a core, or `RUNS_PER_GPU`. A GPU is shared by as few runs as that allows, and the
    cores of a node by its runs.
    """
    kind = "GPU" if on_gpu else "CPU"
    found = [node for node in nodes if node.get(kind, 0) >= 1 and node.get("CPU", 0) >= 1]
    units = sum(int(node[kind]) for node in found)
    if not units:
        return Room(1, 0.0, 0)
    if on_gpu:
        per_gpu = RUNS_PER_GPU if most is None else math.ceil(most / units)
        runs = [int(node["GPU"]) * per_gpu for node in found]
        share = math.floor(10_000 / per_gpu) / 10_000  # Ray counts in ten-thousandths
    else:
        each = math.inf if most is None else math.ceil(most / len(found))
        runs = [int(min(each, node["CPU"])) for node in found]
        share = 0.0
    pairs = [*zip(found, runs, strict=True)]
    cpus = max(1, min(int(node["CPU"] // count) for node, count in pairs))
    fit = sum(min(count, int(node["CPU"] // cpus)) for node, count in pairs)
    return Room(cpus, share, min(fit, most or fit))


class Order(NamedTuple):
    """What a worker must know besides its job."""

    work: Work
    token: Path
    """A file in the runs' folder; a worker that does not see it has another folder of that name."""
    command: list[str]
    """The user's command line, for environment.json."""
    directory: Path
    """The user's working directory, which relative paths in a config start from."""
    board: Any
    """The actor that messages go to."""


class NotShared(NamedTuple):
    """A worker does not see the runs' folder."""

    host: str


@ray.remote(max_retries=0)
def train_on_node(order: Order, job: Job, again: bool) -> Outcome | NotShared | None:
    """Train one run, in a worker; None if a signal ended it.

    again: the run was lost before, and whoever trained it may still hold its directory.
    """
    if not order.token.exists():
        return NotShared(socket.gethostname())
    sys.argv = order.command
    with contextlib.suppress(OSError):
        os.chdir(order.directory)
    torch.set_num_threads(int(ray.get_runtime_context().get_assigned_resources()["CPU"]))
    keep_freed_memory()
    observer = EventObserver(job, lambda event: order.board.post.remote(pickle.dumps(event)))
    until = time.monotonic() + (SECONDS_FOR_THE_LOCK if again else 0)
    try:
        outcome = run_job(job, order.work, observer)
        while outcome.elsewhere and time.monotonic() < until:
            time.sleep(0.5)
            outcome = run_job(job, order.work, observer)
        return outcome
    except StoppedError:
        return None


class OnRay(Engine):
    """Trains runs on Ray, started here for this command or joined at an address."""

    def __init__(self, work: Work, at_once: int | None, address: str | None) -> None:
        """Raises ConfigError if there is no cluster at the address, or it lacks the device."""
        self.work, self.most = absolute(work), at_once
        if address in (None, "local"):
            device = choose_device(work.device).type
            if device == "mps":  # which Ray does not count
                self.most = at_once or RUNS_PER_GPU
            start_ray(max(cores(), at_once or 1), None if device == "cuda" else 0)
        else:
            join_ray(address)
        self.on_gpu = work.device == "cuda" or (
            work.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1
        )
        if not self.at_once:
            self.close()
            raise ConfigError([f"--device {work.device}: no node of this cluster has one"])
        board = ray.remote(Board).options(num_cpus=0, resources={HEAD: 0.001}, max_restarts=-1)
        self.board: Any = board.remote()

    @property
    def room(self) -> Room:
        """What a run is given now, and how many fit in: nodes come and go."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return room_in(nodes, self.on_gpu, self.most)

    @property
    @override
    def at_once(self) -> int:
        return self.room.at_once

    @override
    def run(self, jobs: Sequence[Job], tell: Tell) -> None:
        with silent_stdout(), token_in(self.work.folder) as token:
            order = Order(self.work, token, sys.argv, Path.cwd(), self.board)
            Tasks(self, order, jobs, tell).run()

    @override
    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        with silent_stdout():
            ray.shutdown()


class Tasks:
    """The runs that wait, and those that were given to Ray."""

    def __init__(self, engine: OnRay, order: Order, jobs: Sequence[Job], tell: Tell) -> None:
        self.engine, self.order, self.tell = engine, order, tell
        self.waiting = deque((job, 0) for job in jobs)
        """Jobs, and how often each was lost."""
        self.given: dict[Any, tuple[Job, int]] = {}
        """The same for each task, by the reference to its outcome."""

    def run(self) -> None:
        """Train all; stop all if a signal or an error ends this.

        Signals are recorded: an exception that a handler raises inside of Ray becomes another one.
        """
        with StopSignals() as signals:
            try:
                while (self.waiting or self.given) and not signals.received:
                    self.give()
                    ended, _ = ray.wait([*self.given], timeout=0.5)
                    self.tell_messages()
                    for task in ended:
                        self.end(task)
            finally:
                self.stop()
        if signals.received:
            raise StoppedError("all runs have saved their state", signals.received)

    def give(self) -> None:
        """Give Ray as many runs as fit; without a limit twice as many, so that no core waits."""
        room = self.engine.room
        most = self.engine.most or 2 * room.at_once
        while self.waiting and len(self.given) < max(most, 1):
            job, lost = self.waiting.popleft()
            place = train_on_node.options(num_cpus=room.cpus, num_gpus=room.gpus)
            self.given[place.remote(self.order, job, lost > 0)] = job, lost

    def end(self, task: Any) -> None:
        """Tell the outcome of a task; a run that was lost is given again."""
        job, lost = self.given.pop(task)
        outcome = outcome_of(task, job)
        if isinstance(outcome, Outcome):
            self.tell(outcome)
        elif lost < RETRIES:
            self.tell(Warned(job, f"{outcome}; it goes on from its last checkpoint"))
            self.waiting.appendleft((job, lost + 1))
        else:
            problem = f"{outcome}, {lost + 1} times; perhaps out of memory (try fewer --jobs)"
            self.tell(Outcome(job, None, problem, StnError.exit_code))

    def tell_messages(self) -> None:
        """Tell what the workers have posted."""
        with contextlib.suppress(RayError):  # it is being started again
            for message in ray.get(self.engine.board.collect.remote()):
                event: Event = pickle.loads(message)
                self.tell(event)

    def stop(self) -> None:
        """Have the runs that have not ended save their state; returns when they have."""
        for task in self.given:
            ray.cancel(task)
        if self.given:
            ray.wait([*self.given], num_returns=len(self.given), timeout=SECONDS_TO_SAVE)


def outcome_of(task: Any, job: Job) -> Outcome | str:
    """The outcome of a run, or why it was lost.

    Raises StnError if its node does not share the runs' folder.
    """
    try:
        outcome = ray.get(task)
    except OutOfMemoryError:
        return "the memory of its node was full"
    except (WorkerCrashedError, ObjectLostError):
        return "its process was killed"
    except NodeDiedError:
        return "its node was lost"
    except TaskCancelledError:
        return "it was cancelled"
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        return Outcome(job, None, reason, StnError.exit_code)
    match outcome:
        case Outcome():
            return outcome
        case NotShared(host):
            raise StnError(
                f"{host} does not see the folder of the runs: --out must lie on a file system that "
                "all nodes share, under the same path"
            )
    return "it was told to end"


def absolute(work: Work) -> Work:
    """The same work with paths that mean the same on every node."""
    data_dir = work.data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return Work(
        work.folder.absolute(), work.device, Path(data_dir).absolute() if data_dir else None
    )


@contextlib.contextmanager
def token_in(folder: Path) -> Iterator[Path]:
    """A file of a new name in a folder, for as long as the block runs."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".shared-") as stream:
        yield Path(stream.name)


def start_ray(cpus: int, gpus: int | None) -> None:
    """Start Ray on this machine, with so many cores and GPUs; None: those that it finds."""
    # "local", since otherwise Ray would join any cluster that it finds running here.
    with sigterm_kept():
        ray.init(
            "local",
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **QUIET,
        )


def join_ray(address: str) -> None:
    """Join the cluster at an address, HOST:PORT or auto; raises ConfigError if there is none."""
    try:
        if address != "auto":
            refuse_dead_address(address)
        with sigterm_kept():
            ray.init(address, **QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError([f"--address {address}: {reason}"]) from None


def refuse_dead_address(address: str) -> None:
    """Raise OSError or ValueError unless something listens there: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError("it must be HOST:PORT, or auto; run this on a node of the cluster")
    with socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER):
        pass


@contextlib.contextmanager
def silent_stdout() -> Iterator[None]:
    """Nothing reaches standard output: Ray prints there what it knows of a lost node."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
"""The messages of Ray's own processes go into its logs."""


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM: that of Ray exits at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: there Ray replaces none
            signal.signal(signal.SIGTERM, handler)
