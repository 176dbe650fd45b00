"""`retort compare`: a page on this machine where people say which of two answers is better, not knowing whose."""

import secrets
import socket
from contextlib import suppress

import uvicorn

from pipeline.compare.server import application
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.run import votes
from pipeline.run.rundir import RunDir

HOST = "127.0.0.1"


def run(run_dir: RunDir, port: int, seed: int) -> None:
    """Serve the page until interrupted; port 0 is any that is free, and the seed draws order and sides.

    Raises UserError where the run has no answers to compare, or the port is taken.
    """
    key = secrets.token_urlsafe(16)
    app = application(run_dir, key, seed)
    _, num_unreadable = votes.read(run_dir)
    if num_unreadable:
        say(f"{votes.votes_path(run_dir)}: {num_unreadable} lines can't be read, and count as no votes")
    with _listening(port) as listener:
        say(f"open in a browser on this machine: http://{HOST}:{listener.getsockname()[1]}/{key}/")
        say(f"every vote is saved at once to {votes.votes_path(run_dir)}; ctrl-C stops; run the same command to resume")
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # it would show the key
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=2,
        )
        with suppress(KeyboardInterrupt):  # uvicorn has ended in good order, and hands the signal on
            uvicorn.Server(settings).run(sockets=[listener])
    say(f"stopped; `retort report {run_dir.path}` counts the votes")


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()  # before the address is said: who is quick waits, and is not refused
    except OSError as error:
        listener.close()
        raise UserError(f"port {port} can't be used ({error.strerror}); choose another with --port") from None
    return listener
