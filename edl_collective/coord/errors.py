"""Errors of the coordination layer. [pure]

Every error of this package derives from CoordError. Foreign exceptions (kazoo, msgspec) are translated at the
seam and kept as the cause.
"""


class CoordError(Exception):
    """Base of every error raised by edl_collective.coord."""


class PathError(CoordError):
    """Raised when an operation is refused because of the state of one path."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self._problem}"

    _problem = "operation refused"


class NotFound(PathError):
    """Raised when a path that must exist does not."""

    _problem = "does not exist"


class Exists(PathError):
    """Raised when a path that must not exist does."""

    _problem = "exists already"


class NotEmpty(PathError):
    """Raised when a path that still has children is deleted without recursion."""

    _problem = "still has children"


class VersionConflict(PathError):
    """Raised when a path changed since the version that the caller read: read again, decide again."""

    _problem = "was changed by somebody else since it was read"


class Disconnected(CoordError):
    """Raised when the store cannot be reached or the session was lost; the operation may or may not have happened."""

    def __init__(self, hosts: str, detail: str = "") -> None:
        super().__init__(hosts, detail)
        self.hosts = hosts
        self.detail = detail

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"ZooKeeper at {self.hosts} cannot be reached{detail}; check --zookeeper / EDL_ZOOKEEPER"


class NotLeader(CoordError):
    """Raised when a fenced write is attempted by a leader whose epoch has passed."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch

    def __str__(self) -> str:
        return f"leadership epoch {self.epoch} has ended: another JobServer leads"


class RecordError(CoordError):
    """Raised when the bytes of a path are not the record that belongs there."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path} does not hold a valid record: {self.detail}"


class RecordTooLarge(RecordError):
    """Raised when a record would exceed the size bound of a znode."""


class AccessDenied(PathError):
    """Raised when ZooKeeper lets this session not do what it asked for."""

    _problem = (
        "belongs to another cluster key than this process has: check --key-file / EDL_KEY_FILE "
        "(students and teachers: EDL_SERVICES_TOKEN), or choose another --zookeeper-root"
    )


class OpenTree(PathError):
    """Raised when everybody who reaches ZooKeeper may change a tree that is to be closed."""

    _problem = (
        "is there already and everybody who reaches ZooKeeper may change it, or somebody else owns it: choose another "
        "--zookeeper-root, or remove it when its jobs have ended; --zookeeper-acl open uses it as it is"
    )
