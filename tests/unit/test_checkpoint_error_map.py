"""One map from what clients raise to our errors, for all drivers."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from checkpoints import errors
from checkpoints.drivers.base import translate, translated

TRACE = (
    r"\n\tat org.apache.hadoop.hdfs.server.namenode.FSNamesystem.x(FSNamesystem.java:1)"
    r"\n\tat java.base/java.security.AccessController.doPrivileged(AccessController.java:712)"
    r"\n\tat org.apache.hadoop.security.UserGroupInformation.doAs(UserGroupInformation.java:1746)"
)


def rpc(java: str, said: str) -> RuntimeError:
    """As hdfs-native says it."""
    return RuntimeError(f'RPCError("{java}", "{said}{TRACE}")')


NAMENODE = "org.apache.hadoop.hdfs.server.namenode"
TABLE: list[tuple[Exception, type[errors.CheckpointError]]] = [
    (FileNotFoundError("x"), errors.CheckpointNotFound),
    (NotADirectoryError("x"), errors.CheckpointNotFound),
    (rpc("java.io.FileNotFoundException", "File does not exist: /x"), errors.CheckpointNotFound),
    (FileExistsError("x"), errors.CheckpointExists),
    (rpc("org.apache.hadoop.fs.FileAlreadyExistsException", "/x already exists"), errors.CheckpointExists),
    (rpc("org.apache.hadoop.hdfs.protocol.AlreadyBeingCreatedException", "failed to create"), errors.CheckpointExists),
    (PermissionError("x"), errors.CheckpointPermission),
    (
        rpc("org.apache.hadoop.security.AccessControlException", "Permission denied: user=eva"),
        errors.CheckpointPermission,
    ),
    (OSError(errno.EROFS, "read-only"), errors.CheckpointPermission),
    (OSError(errno.ENOSPC, "full"), errors.CheckpointQuota),
    (OSError(errno.EDQUOT, "quota"), errors.CheckpointQuota),
    (OSError(errno.EFBIG, "too large"), errors.CheckpointQuota),
    (rpc("org.apache.hadoop.hdfs.protocol.NSQuotaExceededException", "The NameSpace quota"), errors.CheckpointQuota),
    (rpc("org.apache.hadoop.hdfs.protocol.DSQuotaExceededException", "The DiskSpace quota"), errors.CheckpointQuota),
    (rpc(f"{NAMENODE}.SafeModeException", "Cannot create file"), errors.CheckpointUnavailable),
    (rpc(f"{NAMENODE}.LeaseExpiredException", "No lease on /x: File does not exist."), errors.CheckpointLeaseLost),
    (rpc("java.io.IOException", "blk_1 does not exist or is not under Constructionnull"), errors.CheckpointLeaseLost),
    (TimeoutError("no answer"), errors.CheckpointTimeout),
    (OSError(errno.ETIMEDOUT, "timed out"), errors.CheckpointTimeout),
    (rpc("org.apache.hadoop.net.ConnectTimeoutException", "20000 millis"), errors.CheckpointTimeout),
    (NotImplementedError("x"), errors.CheckpointUnsupported),
    (ConnectionRefusedError("x"), errors.CheckpointUnavailable),
    (rpc("java.io.IOException", "could only be replicated to 0 nodes"), errors.CheckpointUnavailable),
    (
        rpc("org.apache.hadoop.ipc.StandbyException", "Operation category READ is not supported"),
        errors.CheckpointUnavailable,
    ),
    (OSError(errno.EIO, "io"), errors.CheckpointUnavailable),
    (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), errors.CheckpointPermission),
    (RuntimeError("nobody knows"), errors.CheckpointUnavailable),
    (KeyError("nobody knows"), errors.CheckpointUnavailable),
]


@pytest.mark.parametrize(("error", "kind"), TABLE, ids=lambda value: str(value)[:40].replace("/", "_"))
def test_every_error_has_its_kind(error: Exception, kind: type[errors.CheckpointError]) -> None:
    ours = translate(error, operation="write", path="hdfs://nn/x")
    assert type(ours) is kind
    assert str(ours).startswith("cannot write hdfs://nn/x: ")
    assert (ours.url, ours.operation) == ("hdfs://nn/x", "write")
    assert "AccessController" not in str(ours)  # a stack trace says nothing to the user


def test_a_trace_of_java_is_cut_as_it_is_and_escaped() -> None:
    for separator in ("\n\tat ", r"\n\tat ", "null\n\tat "):
        error = RuntimeError(f"java.io.IOException: broken{separator}java.security.AccessControlException.x(A.java:1)")
        ours = translate(error, operation="read", path="p")
        assert type(ours) is errors.CheckpointUnavailable
        assert "java:1" not in str(ours)


def test_mistakes_of_ours_are_not_translated() -> None:
    for mistake in (TypeError, AttributeError, NameError, AssertionError):
        with pytest.raises(mistake), translated("write", "p"):
            raise mistake("a bug")
    with pytest.raises(errors.CheckpointQuota) as raised, translated("write", "p"):
        raise errors.CheckpointQuota("told before")
    assert str(raised.value) == "told before"


def test_the_documents_list_every_kind() -> None:
    text = (Path(__file__).parents[2] / "docs/hdfs.md").read_text(encoding="utf-8")
    for kind in {kind for _, kind in TABLE}:
        assert f"`{kind.__name__}`" in text
