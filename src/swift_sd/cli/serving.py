"""One process that answers, or several that share a model; the command line has been read."""

from __future__ import annotations

import signal

from swift_sd import loading
from swift_sd.cli.session import quiet_transformers
from swift_sd.cli.terminal import note, progress
from swift_sd.serve import lockstep
from swift_sd.serve.served import Served
from swift_sd.serve.server import listen, run
from swift_sd.serve.spec import Spec, load, loading_engine


def serve_here(spec: Spec, host: str, port: int) -> bool:
    """Until it is told to stop; whether all other processes, if there are any, know of it."""
    # A taken port fails at once.
    with listen(host, port, spec.limits.transfer) as listener, quiet_transformers():
        address = listener.getsockname()

        def make() -> list[Served]:
            with progress("loading") as tell:
                served = load(spec, tell)
            note(f"{', '.join(spec.models)} at http://{_written(address[0])}:{address[1]}")
            return served

        engine, metrics = loading_engine(spec, make)
        try:
            run(spec, engine, metrics, listener)
        except KeyboardInterrupt:
            if spec.tensor_parallel == 1:
                raise
        leaders = [one.leader for one in engine.models.values() if one.leader is not None]
        return all(leader.has_ended for leader in leaders)


def serve_split(spec: Spec, host: str, port: int) -> None:
    """On each process that torchrun started; the first one has the port."""
    is_known = True
    with progress("loading") as tell, quiet_transformers():
        for source in spec.models.values():
            loading.convert(source, tell)  # once joined, only the first process could save it
    if lockstep.join(spec.tensor_parallel) == 0:
        is_known = serve_here(spec, host, port)
    else:
        with quiet_transformers():
            served = load(spec, lambda message: None)
            for number in (signal.SIGINT, signal.SIGTERM):  # torchrun tells all; the first decides
                signal.signal(number, signal.SIG_IGN)
            lockstep.follow({one.name: one.swift for one in served})
    lockstep.leave(0 if is_known else 1)  # torchrun ends those that do not know


def _written(address: str) -> str:
    return f"[{address}]" if ":" in address else address
