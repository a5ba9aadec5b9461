"""A fence around one process: nothing of the machine is seen that a lesson does not need, and nothing outlives it.

On Linux the process gets namespaces of its own: a root folder that shows Python and the package and nothing else,
read-only; an empty home in memory, of limited size; no network; no other process. Where a system forbids
namespaces, limits remain, and another user where the grader runs as root. `level` says which of them holds;
docs/teaching.md says what each does not stop.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

NEW_NS, NEW_IPC, NEW_UTS, NEW_USER, NEW_PID, NEW_NET = 0x20000, 0x8000000, 0x4000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
KEPT_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC  # a namespace may not loosen them
DETACH = 2
SET_PDEATHSIG, SET_NO_NEW_PRIVS, CAPBSET_DROP = 1, 38, 24
HOME = "student"
FIRST_USER, NUM_USERS = 61_184, 4_000  # a range that no person's account has
DEVICES = ("null", "zero", "random", "urandom")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/localtime")
LEVELS = ("namespaces", "another user", "limits only")


@dataclass(frozen=True)
class Limits:
    """What one student's process may use.

    Args:
        seconds: of a processor's time for one answer or one cell; a clock gives it four times as many.
        memory: bytes beside what the lesson takes.
        disk: bytes in its home.
        processes: at once, threads included.
    """

    seconds: float = 60.0
    memory: int = 2 << 30
    disk: int = 64 << 20
    processes: int = 64

    @property
    def patience(self) -> float:
        """Give the seconds by the clock: a busy machine must not cost marks."""
        return 4 * self.seconds


def libc():
    """Give the C library, which raises no errors by itself."""
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Turn a failed call into an OSError."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces of the parent."""
    checked(libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount, as the system call does."""
    as_bytes = [None if x is None else os.fsencode(x) for x in (source, target, kind)]
    checked(libc().mount(*as_bytes, flags, options.encode() or None), f"mount {target}")


def separate(level: str) -> None:
    """Put the children of this process into namespaces of their own, where the level has them.

    Raises: OSError: when the system forbids it.
    """
    if level != LEVELS[0]:
        return
    apart = NEW_NS | NEW_PID | NEW_NET | NEW_IPC | NEW_UTS
    if os.getuid() == 0:
        unshare(apart)
    else:
        uid, gid = os.getuid(), os.getgid()
        unshare(NEW_USER | apart)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def find_level() -> str:
    """Try how well a process can be fenced in on this machine.

    Returns: the first of LEVELS that works.
    """
    plain = LEVELS[1] if os.getuid() == 0 else LEVELS[2]
    if sys.platform != "linux":
        return plain
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            separate(LEVELS[0])
            inner = os.fork()
            if inner == 0:
                with contextlib.suppress(BaseException):
                    enter(LEVELS[0], Limits(), "/", os.getpid())
                    os._exit(0)
                os._exit(1)
            code = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
        os._exit(code)
    return LEVELS[0] if os.waitpid(child, 0)[1] == 0 else plain


def visible() -> list[str]:
    """List what a lesson needs to read: libraries of the system, Python, packages, and this one without its data."""
    package = Path(__file__).resolve().parents[2]
    data = package.parent / "data"
    paths = [*SYSTEM, sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), str(package)]
    paths += [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    paths += [str(data / name) for name in ("checkpoints", "reference")]
    seen: list[str] = []
    for path in sorted({os.path.abspath(p) for p in paths if os.path.exists(p)}, key=len):
        if not any(path.startswith(f"{upper}/") for upper in seen):
            seen.append(path)
    return seen


def build_root(limits: Limits) -> None:
    """Move into a root folder in memory that shows only what a lesson needs; the working folder is its empty home."""
    new = tempfile.mkdtemp(prefix="minidalle-root-")
    mount("tmpfs", new, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in visible():
        show(path, new)
    for name in DEVICES:
        show(f"/dev/{name}", new, MS_NOSUID)
    for name in ("proc", HOME):
        Path(new, name).mkdir(exist_ok=True)
    with contextlib.suppress(OSError):  # some containers forbid it; then there is none
        mount("proc", f"{new}/proc", "proc", KEPT_FLAGS)
    mount("tmpfs", f"{new}/{HOME}", "tmpfs", MS_NOSUID | MS_NODEV, f"size={limits.disk},mode=1777,nr_inodes=10000")
    os.chdir(new)
    Path(new, "old").mkdir()
    checked(libc().pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    checked(libc().umount2(b"/old", DETACH), "umount")
    os.rmdir("/old")
    mount("none", "/", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(f"/{HOME}")


def show(path: str, new: str, more: int = MS_NOSUID | MS_NODEV) -> None:
    """Bind a file or folder into the new root, read-only; a link stays a link."""
    target = new + path
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if not os.path.exists(path):
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        Path(target).touch()
    mount(path, target, None, MS_BIND | MS_REC)
    kept = os.statvfs(target).f_flag & KEPT_FLAGS
    mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept | more)


def enter(level: str, limits: Limits, home: str, number: int) -> None:
    """Fence this process in for good. Where there are namespaces it must be the first process of them.

    Args:
        level: one of LEVELS.
        limits: what it may use.
        home: an empty folder, for where there are no namespaces.
        number: chooses the user that it becomes where the grader runs as root.
    """
    root = os.getuid() == 0
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if in_proc() else 0
    if level == LEVELS[0]:
        build_root(limits)
    else:
        os.chdir(home)
    here = os.getcwd()
    os.environ.update(HOME=here, TMPDIR=here, MPLCONFIGDIR=here, IPYTHONDIR=here)
    tempfile.tempdir = None
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, limits.disk)
    limit(resource.RLIMIT_NOFILE, 256)
    if level != LEVELS[2]:  # else the grader's own processes would count
        limit(resource.RLIMIT_NPROC, limits.processes)
    if in_use:
        limit(resource.RLIMIT_AS, in_use + limits.memory)
    if root:
        user = FIRST_USER + number % NUM_USERS
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if sys.platform == "linux":
        drop_rights()


def in_proc() -> bool:
    """Tell whether the system shows this process's own memory."""
    return os.path.exists("/proc/self/statm")


def limit(kind: int, amount: int) -> None:
    """Lower a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses some
        resource.setrlimit(kind, (amount, amount))


def drop_rights() -> None:
    """Give up every capability, and die with the parent."""
    library = libc()
    for capability in range(64):
        library.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    checked(library.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    library.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    library.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
