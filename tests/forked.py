"""The command line in forked processes: TensorFlow is imported once, and set up in each of them alone.

Starting Python and importing TensorFlow takes seconds, and some tests here need hundreds of processes. They are forks
of a server that has imported it and done nothing with it, since it does not survive a fork once it runs.
"""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["forked_imports"])


class Command:
    """`cifar-train` with these words; what it says goes into `log`; hook is called in the process before it begins."""

    def __init__(self, words, log, *, hook=None, user=None, **environment):
        self.log = Path(log)
        path = [str(Path(__file__).parent), *sys.path]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)  # for the server
        self._process = _context.Process(
            target=_run, args=(list(map(str, words)), str(log), hook, user, environment), daemon=True
        )
        self._process.start()

    def send(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)
        return self.wait()

    @property
    def is_running(self):
        return self._process.is_alive()

    def wait(self, seconds=120):
        """Return the exit code, minus the signal's number if one has killed it."""
        self._process.join(seconds)
        assert not self._process.is_alive(), f"still running after {seconds} s: {self.said}"
        return self._process.exitcode

    @property
    def said(self):
        return self.log.read_text() if self.log.exists() else ""


def _run(words, log, hook, user, environment):
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if hook is not None:
        hook()
    from cifar_research import train

    code = train.command(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(what, command, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert command.is_running, command.said
        assert time.monotonic() < end, command.said
        time.sleep(0.002)
