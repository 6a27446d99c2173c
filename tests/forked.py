"""Commands in forked processes: TensorFlow is imported once, and set up in each of them alone.

Starting Python and importing TensorFlow takes seconds, and the tests need hundreds of processes. They are forks of a
server that has imported it and done nothing with it, since it does not survive a fork once it runs. A process whose
start itself is tested is begun with subprocess.
"""

import base64
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

from cifar_research.display import figures

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
png = figures.png
shared_server = None  # the address of a server that another process has started, if any
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["forked_imports"])


class Process:
    """The main function of a module with these arguments, used as a subprocess.Popen whose output is text.

    It draws figures if this process does, see conftest.pytest_runtest_setup.
    code: what to run in place of a module, as `python -c` does.
    hook: called in the process before it begins. workers: whether the workers of a sweep are forks of the server, too.
    """

    def __init__(
        self,
        arguments,
        *,
        module="cifar_research.train",
        code=None,
        cwd=None,
        env=None,
        hook=None,
        user=None,
        workers=True,
    ):
        self._folder = tempfile.TemporaryDirectory()
        self.stdout, self.stderr = (Path(self._folder.name, name) for name in ("stdout", "stderr"))
        settings = {
            "arguments": [*map(str, arguments)], "module": module, "code": code, "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env), "hook": hook, "user": user, "workers": workers,
            "outputs": (str(self.stdout), str(self.stderr)), "png": figures.png,
        }  # fmt: skip
        for path in (self.stdout, self.stderr):
            path.write_bytes(b"")
        settings["server"] = start_server() if shared_server is None else _use(shared_server)
        self._process = _context.Process(target=_main, kwargs=settings, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return None if self._process.is_alive() else self.returncode

    @property
    def returncode(self):
        return self._process.exitcode

    @property
    def is_running(self):
        return self._process.is_alive()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)
        return self.wait()

    def wait(self, timeout=120):
        """Return the exit code, negative for a signal."""
        self._process.join(timeout)
        assert not self.is_running, f"still running after {timeout} s: {self.output}"
        return self.returncode

    def communicate(self, timeout=300):
        """Wait for the end; return (standard output, standard error)."""
        self.wait(timeout)
        texts = (path.read_text(encoding="utf-8", errors="surrogateescape") for path in (self.stdout, self.stderr))
        return tuple(texts)

    @property
    def output(self):
        return "".join(path.read_text(errors="replace") for path in (self.stdout, self.stderr))


def one_pixel(figure):
    """Return a PNG of one pixel, in place of figures.png, which takes longer than a tiny run's training."""
    return base64.b64decode(_PIXEL)


def run(arguments, *, timeout=300, **settings):
    """Do what subprocess.run does with captured text output."""
    process = Process(arguments, **settings)
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def wait_for(what, process, seconds=200):
    """Wait until `what()` is true, while the process runs; process: None, a Process or a subprocess.Popen."""
    end = time.monotonic() + seconds
    while not what():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def start_server():
    """Start the server, unless it runs; return its address. A process gets its test's environment, not the server's."""
    before = dict(os.environ)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    try:
        forkserver._forkserver.ensure_running()  # which a fork replaces, see _use
    finally:
        os.environ.clear()
        os.environ.update(before)
    return forkserver._forkserver._forkserver_address


def _use(address):
    """Have this process's forks begin from the server at this address; return it."""
    forkserver._forkserver._forkserver_address = address
    forkserver._forkserver.ensure_running = lambda: None
    if forkserver._forkserver._forkserver_alive_fd is None:  # what the forks inherit; a server ends with its starter
        forkserver._forkserver._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
    return address


def _main(arguments, module, code, cwd, env, hook, user, workers, outputs, png, server):
    assert "tensorflow" in sys.modules, "the server could not import what forked_imports.py lists"
    os.environ.clear()
    os.environ.update(env)
    os.setpgid(0, 0)
    os.chdir(cwd)
    _write_to(outputs)
    figures.png = png
    multiprocessing.current_process()._config["daemon"] = False  # a sweep has processes of its own
    sys.path.insert(0, cwd)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if workers:
        _fork_workers(outputs, server)
    if hook is not None:
        hook()
    try:
        if code is not None:
            sys.argv = ["-c", *arguments]
            exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
        else:
            command = importlib.import_module(module)
            sys.argv = [command.__file__, *arguments]
            command.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _write_to(outputs):
    for number, path in enumerate(outputs, 1):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr


def _fork_workers(outputs, server):
    """Have this process's sweep begin its workers as forks of the server, without importing TensorFlow again."""
    _use(server)  # by itself, a fork would start a server of its own

    class Forks:
        Pipe = staticmethod(_context.Pipe)

        @staticmethod
        def Process(*, target, args, name):
            begin = (os.getcwd(), dict(os.environ), os.getpgrp(), outputs, figures.png, target, args)
            return _context.Process(target=_work, args=begin, name=name)

    multiprocessing.get_context = lambda kind: Forks


def _work(cwd, env, group, outputs, png, target, args):
    os.setpgid(0, group)  # where the signals of a terminal go
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    _write_to(outputs)
    figures.png = png
    target(*args)
