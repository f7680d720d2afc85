"""Who comes next."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator

from swift_sd.serve.jobs import Job


class Waiting:
    """Jobs in the order of their arrival for each client, and clients in turn.

    A client with a hundred jobs delays one with a single job by one job at most. Not thread-safe.
    """

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __iter__(self) -> Iterator[Job]:
        return (job for jobs in self._of.values() for job in jobs)

    def put(self, job: Job) -> None:
        """Add a job after its client's others."""
        self._of.setdefault(job.client, deque()).append(job)

    def has_newcomer(self, active: Iterable[str]) -> bool:
        """Whether a client waits that is none of the `active` ones."""
        return not self._of.keys() <= set(active)

    def take(self, active: Iterable[str] = ()) -> Job:
        """The next job: of the client with the fewest `active` ones, then who waited longest.

        Args:
            active: the client of each job in progress.

        Raises:
            IndexError: nobody waits.
        """
        if not self._of:
            raise IndexError("nobody waits")
        busy = Counter(active)
        client = min(self._of, key=lambda name: busy[name])  # the first of several
        jobs = self._of.pop(client)
        job = jobs.popleft()
        if jobs:
            self._of[client] = jobs  # after all other clients
        return job

    def discard(self, job: Job) -> None:
        """Take a job out, if it is there."""
        jobs = self._of.get(job.client)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._of[job.client]
