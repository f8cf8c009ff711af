"""What libhdfs needs from the environment, found and checked before a JVM is started.

A JVM is started once in a process and never again, so a mistake here cannot be mended afterwards; and what pyarrow and
the JVM say about one is a stack trace on standard error. Here each is one sentence that names the variable to set.

Invariant: `prepare` changes the environment only when all was found.
"""

from __future__ import annotations

import ctypes.util
import shutil
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from checkpoints.errors import CheckpointUnsupported

#: Where a JVM's library lies below JAVA_HOME: Java 9 and later, 8, and a JRE alone.
_LIBJVM = ("lib/server/libjvm.so", "jre/lib/amd64/server/libjvm.so", "lib/amd64/server/libjvm.so")
_CLASSPATH_LIMIT_S = 60.0
#: The JVM leaves SIGINT, SIGTERM and SIGHUP alone; otherwise it takes them from Python and ends the process.
_LEAVE_SIGNALS = "-Xrs"


def prepare(environment: MutableMapping[str, str]) -> None:
    """Set JAVA_HOME, CLASSPATH and LIBHDFS_OPTS as libhdfs needs them.

    Args:
        environment: of this process; HADOOP_HOME, HADOOP_CONF_DIR and ARROW_LIBHDFS_DIR are read as well.

    Raises:
        CheckpointUnsupported: if libjvm, libhdfs or Hadoop's classes cannot be found.
    """
    java_home = _java_home(environment)
    _check_library(environment)
    class_path = _class_path(environment)
    environment["JAVA_HOME"] = str(java_home)
    environment["CLASSPATH"] = class_path
    options = environment.get("LIBHDFS_OPTS", "")
    if _LEAVE_SIGNALS not in options.split():
        environment["LIBHDFS_OPTS"] = f"{options} {_LEAVE_SIGNALS}".strip()


def _java_home(environment: Mapping[str, str]) -> Path:
    given = environment.get("JAVA_HOME")
    if given:
        if not any((Path(given) / name).is_file() for name in _LIBJVM):
            raise CheckpointUnsupported(f"JAVA_HOME={given} has no {_LIBJVM[0]}: set it to a Java 8 or later")
        return Path(given)
    java = shutil.which("java", path=environment.get("PATH"))
    if java is not None:
        home = Path(java).resolve().parents[1]
        if any((home / name).is_file() for name in _LIBJVM):
            return home
    raise CheckpointUnsupported("libhdfs needs a JVM: set JAVA_HOME to a Java that has lib/server/libjvm.so")


def _check_library(environment: Mapping[str, str]) -> None:
    """As pyarrow looks for it: ARROW_LIBHDFS_DIR, the Hadoop install, then wherever the system finds libraries."""
    folders = [Path(folder) for folder in _library_folders(environment)]
    if any((folder / "libhdfs.so").is_file() for folder in folders) or ctypes.util.find_library("hdfs"):
        return
    looked = f" (not in {', '.join(map(str, folders))})" if folders else ""
    raise CheckpointUnsupported(
        f"there is no libhdfs.so{looked}: set ARROW_LIBHDFS_DIR to the folder that holds it, or HADOOP_HOME to a "
        "Hadoop install with lib/native/libhdfs.so"
    )


def _library_folders(environment: Mapping[str, str]) -> Iterator[str]:
    if environment.get("ARROW_LIBHDFS_DIR"):
        yield environment["ARROW_LIBHDFS_DIR"]
    if environment.get("HADOOP_HOME"):
        yield f"{environment['HADOOP_HOME']}/lib/native"


def _class_path(environment: Mapping[str, str]) -> str:
    """CLASSPATH or what `hadoop classpath` says, wildcards expanded (a JVM made by libhdfs does not do it)."""
    given = environment.get("CLASSPATH") or _ask_hadoop(environment)
    entries = [item for entry in given.split(":") if entry for item in _expanded(entry)]
    if not any(Path(entry).name.startswith(("hadoop-common", "hadoop-client-api")) for entry in entries):
        raise CheckpointUnsupported(
            "Hadoop's classes are not on the CLASSPATH (no hadoop-common*.jar): set it to the output of "
            "`hadoop classpath --glob`, or set HADOOP_HOME"
        )
    conf_dir = environment.get("HADOOP_CONF_DIR")
    if conf_dir and conf_dir not in entries:
        entries.insert(0, conf_dir)
    return ":".join(entries)


def _expanded(entry: str) -> list[str]:
    if not entry.endswith("*"):
        return [entry]
    return sorted(str(jar) for jar in Path(entry[:-1]).glob("*.jar"))


def _ask_hadoop(environment: Mapping[str, str]) -> str:
    home = environment.get("HADOOP_HOME")
    command = f"{home}/bin/hadoop" if home else shutil.which("hadoop", path=environment.get("PATH"))
    if command is None:
        return ""
    try:
        done = subprocess.run(
            [command, "classpath", "--glob"],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=_CLASSPATH_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CheckpointUnsupported(f"`{command} classpath --glob` failed ({error}): set CLASSPATH yourself") from error
    return done.stdout.strip()
