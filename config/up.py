"""The last step of `make up`: start the Procfile's processes in the foreground, and stop them together.

honcho manages them. A line of the Procfile is a loop that starts its process again whenever that ends, until the
loop itself is told to end; so honcho only ever stops everything: at Ctrl-C, SIGTERM, or when the terminal goes away.
What still runs after 5 seconds is killed.
`python -m config.up --check` only says, at once, whether there is a reason not to start.
"""

import errno
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import honcho.environ
import honcho.manager
from honcho.printer import Message, Printer

from config import embedded_redis
from config.home import BASE_DIR, HOME

IS_REDIS_EMBEDDED = not os.environ.get("REDIS_URL")


class QuietPrinter(Printer):
    """Prints what the processes print; honcho's own news would come after the line that says all is ready."""

    def write(self, message: Message) -> None:
        if message.name != honcho.manager.SYSTEM_PRINTER_NAME:
            super().write(message)


class Manager(honcho.manager.Manager):
    """honcho's, except that Redis ends last: workers hand back to it what they have not done.

    It is also safe against a signal in its first moments, when honcho does not know every process's id yet.
    """

    _terminating: bool

    def terminate(self) -> None:
        if self._all_started() and not self._terminating:
            self._terminating = True
            threading.Thread(target=self._end_all, daemon=True).start()

    def _end_all(self) -> None:
        others = [process for name, process in self._processes.items() if name != "redis"]
        for process in others:
            self._procmgr.terminate(process["pid"])
        deadline = time.monotonic() + honcho.manager.KILL_WAIT - 1
        while any("returncode" not in process for process in others) and time.monotonic() < deadline:
            time.sleep(0.05)
        if "redis" in self._processes:
            self._procmgr.terminate(self._processes["redis"]["pid"])

    def _any_stopped(self) -> bool:
        return self.returncode is not None or super()._any_stopped()  # a signal counts: stop, and kill in 5 seconds


def reason_not_to_start() -> str | None:
    if IS_REDIS_EMBEDDED and not embedded_redis.executable():
        return embedded_redis.NO_REDIS
    if IS_REDIS_EMBEDDED and embedded_redis.is_answering():
        return f"Plumbline is already running on {HOME} (its Redis answers). Stop that one first."
    host, port = os.environ.get("HOST", "127.0.0.1"), os.environ.get("PORT", "8000")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, int(port)))
            server.listen()
            return None
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return f"Port {port} on {host} is taken. Choose another one: make up PORT=8001"
        return f"Cannot listen on HOST={host} PORT={port}: {error}"


def commands() -> dict[str, str]:
    """The Procfile's processes; Redis only where it is embedded."""
    processes = honcho.environ.parse_procfile((BASE_DIR / "Procfile").read_text()).processes
    return {name: command for name, command in processes.items() if name != "redis" or IS_REDIS_EMBEDDED}


def main() -> None:
    os.umask(0o077)  # whatever is kept is its owner's
    if reason := reason_not_to_start():
        sys.exit(reason)
    if sys.argv[1:] == ["--check"]:
        return
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    manager = Manager(QuietPrinter(prefix=False))
    for name, command in commands().items():
        manager.add_process(name, command, cwd=str(BASE_DIR))
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        manager.loop()
    except BaseException:
        manager.kill()
        raise
    sys.exit(manager.returncode)


if __name__ == "__main__":
    main()
