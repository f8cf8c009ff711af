"""The parent of one worker: it starts the command, watches it, and takes all of it down. Standard library only.

Run as `python -I -S shim.py [OPTIONS] LOG CWD COMMAND [ARGS...]` by the JobClient, which holds the other ends of two
pipes:
- standard input: the line `stop SECONDS` begins the stop ladder (SIGTERM to the group, SIGKILL when the deadline
  passes); end of file means that the JobClient is gone: SIGKILL at once;
- standard output: JSON lines `{"started": PID}`, `{"exited": STATUS}` (negative for a signal) or `{"failed": TEXT}`.

Invariant: when the shim has exited, no descendant of its command is left. It is the subreaper of them, so even those
that left the process group come back to it. If the shim itself is killed, the command dies by PR_SET_PDEATHSIG and
the JobClient kills the rest of the group. It decides nothing, retries nothing and never polls.

Options: --make-cwd makes CWD if need be; --as=UID:GID:GROUP,... runs the command as another user, --environment=FD with
the variables in that file. The shim itself then stays root, so that what it watches cannot touch it: it takes nothing
from the command's environment, and writes only to the log, which is given to that user.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
import warnings  # noqa: F401  execvpe imports it, where the user of the command may be unable to read our Python

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _report(line: str) -> None:
    # When the JobClient is gone, end of file on standard input follows and says so.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, line.encode() + b"\n")


class _Options:
    """What the JobClient asks for, besides the command."""

    def __init__(self, words: list[str]) -> None:
        named = dict(word.partition("=")[::2] for word in words)
        self.make_cwd = "--make-cwd" in named
        #: user, group, supplementary groups; None: no other user
        self.user: tuple[int, int, list[int]] | None = None
        self.environ: dict[bytes, bytes] = dict(os.environb)
        if "--as" in named:
            uid, gid, groups = named["--as"].split(":")
            self.user = int(uid), int(gid), [int(group) for group in groups.split(",") if group]
            self.environ = _read_environment(int(named["--environment"]))


def _read_environment(descriptor: int) -> dict[bytes, bytes]:
    """Variables, each ended by NUL, from the beginning of the file, which is closed."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if entry)


def _become_user(uid: int, gid: int, groups: list[int]) -> None:
    """For good: real, effective and saved ids."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _become(command: list[str], cwd: str, log: int, problem: int, options: _Options) -> None:
    """In the child: a session of its own, its output in the log, then the command. Never returns."""
    try:
        parent = os.getppid()
        os.setsid()
        if options.user is not None:
            _become_user(*options.user)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the shim died before the death signal was armed
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        if options.make_cwd:
            os.makedirs(cwd, exist_ok=True)
        os.chdir(cwd)
        os.execvpe(command[0], command, options.environ)  # noqa: S606
    except BaseException as error:
        os.write(problem, f"cannot run {command[0]!r} in {cwd}: {error}".encode())
    finally:
        os._exit(127)


def _start(command: list[str], cwd: str, log: int, options: _Options) -> int:
    """Start the command; its pid. Raises OSError with a sentence when it cannot be executed."""
    problem, write_end = os.pipe()  # closes by itself on a successful exec
    pid = os.fork()
    if pid == 0:
        os.close(problem)
        _become(command, cwd, log, write_end, options)
    os.close(write_end)
    text = os.read(problem, 4096)
    os.close(problem)
    if text:
        os.waitpid(pid, 0)
        raise OSError(text.decode(errors="replace"))
    return pid


def _kill_group(group: int, number: int) -> None:
    # An empty group, or one of zombies only, has nobody to signal.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _children() -> list[int]:
    """Processes whose parent is this one, from /proc/PID/stat (the field after the state, behind the last ')')."""
    mine = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = file.read().rpartition(b")")[2].split()[1]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if int(parent) == os.getpid():
                mine.append(int(name))
    return mine


class _Watch:
    """Waits for whichever comes first: the command's end, a line of the JobClient, a signal, the deadline."""

    def __init__(self) -> None:
        self.child: int | None = None
        self.status: int | None = None
        self.deadline: float | None = None
        self._line = b""
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def run(self, child: int) -> None:
        """Return when the command has ended (`status`), after SIGKILL if need be."""
        self.child = child
        self._reap()  # its SIGCHLD may have come before we watched
        while self.status is None:
            timeout_s = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            ready = {fd for fd, _ in self._poll.poll(None if timeout_s is None else timeout_s * 1000 + 1)}
            if self._wake in ready:
                self._signals()
            if 0 in ready:
                self._order()
            if self.deadline is not None and time.monotonic() >= self.deadline:
                _kill_group(child, signal.SIGKILL)
                self.deadline = None

    def _signals(self) -> None:
        numbers = set(os.read(self._wake, 4096))
        if numbers & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
            self._end()
        self._reap()

    def _order(self) -> None:
        data = os.read(0, 4096)
        if not data:
            self._poll.unregister(0)
            self._end()
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            word, _, seconds = line.partition(b" ")
            if word == b"stop":
                self._stop(float(seconds))

    def _stop(self, timeout_s: float) -> None:
        """Begin the ladder, or bring its deadline forward."""
        deadline = time.monotonic() + timeout_s
        if self.deadline is None:
            assert self.child is not None
            _kill_group(self.child, signal.SIGTERM)
            self.deadline = deadline
        self.deadline = min(self.deadline, deadline)

    def _end(self) -> None:
        assert self.child is not None
        _kill_group(self.child, signal.SIGKILL)

    def _reap(self) -> None:
        """Collect what has ended; orphans of the command come here as well.

        The command itself stays a zombie until the group has been killed, so that its pid still names the group.
        """
        while True:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None:
                return
            if info.si_pid == self.child:
                self.status = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
                return
            os.waitpid(info.si_pid, 0)


def _clear(group: int) -> None:
    """Kill and reap everything that the command left behind."""
    _kill_group(group, signal.SIGKILL)
    while True:
        for pid in _children():
            # The pid is ours until it is waited for. One that changed its user (sudo) keeps the slot until it ends.
            with contextlib.suppress(PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)  # its children, if any, are ours from now on: look again
        except ChildProcessError:
            return


def _open_log(path: str, options: _Options) -> int:
    """Not through a link: it is opened, and given away, by root."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640)
    if options.user is not None:
        os.fchown(descriptor, *options.user[:2])  # else what opens /dev/stdout anew could not write there
    return descriptor


def main(options: _Options, log_path: str, cwd: str, command: list[str]) -> int:
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        log = _open_log(log_path, options)
        watch = _Watch()
        child = _start(command, cwd, log, options)
    except OSError as error:
        import json

        _report(json.dumps({"failed": str(error)}))
        return 1
    _report(f'{{"started": {child}}}')
    watch.run(child)
    _report(f'{{"exited": {watch.status}}}')
    _clear(child)
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    split = next((index for index, word in enumerate(words) if not word.startswith("--")), len(words))
    if len(words) - split < 3:
        sys.exit("usage: shim.py [OPTIONS] LOG CWD COMMAND [ARGS...]  (started by the JobClient)")
    sys.exit(main(_Options(words[:split]), words[split], words[split + 1], words[split + 2 :]))
