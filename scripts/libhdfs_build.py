"""libhdfs.so for the tests, compiled from public source archives that are fetched by hash, and kept in the cache.

    python scripts/libhdfs_build.py        prints the folder that holds it

A Hadoop install brings its own; Python's and Debian's package indexes have none. The C sources are in the pydoop 2.0.0
archive (0.7 MB), the header jni.h, which a Java without a compiler lacks, in JPype1 1.5.0 (0.8 MB). Nothing of either
is installed. Fetching takes 5 s, compiling 1 s.

Invariant: a folder in the cache holds a whole library for the JVM that its name stands for, or is not there.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from hadoop_jars import LocalHdfsError, Say, default_cache_dir, download_source, locked, run_tool

PYDOOP = ("pydoop==2.0.0", "c7eb2ad8c36d2a75dc1c6cee701928334614f2e862a70798b0cb278e3102f77d")
JPYPE = ("JPype1==1.5.0", "425a6e1966afdd5848b60c2688bcaeb7e40ba504a686f1114589668e0631e878")
_SOURCES = "src/libhdfs/"
_HEADER = "native/jni_include/jni.h"
_FLAGS = ("-shared", "-fPIC", "-O1", "-w", "-std=gnu99")


def fetch_libhdfs(cache_dir: Path, say: Say) -> Path:
    """The folder with libhdfs.so for the Java that is on the PATH, built on the first call.

    Raises:
        LocalHdfsError: if there is no JVM or no compiler, or a download is not what it should be.
    """
    libjvm = java_home() / "lib/server/libjvm.so"
    key = hashlib.sha256(f"{PYDOOP} {JPYPE} {_FLAGS} {libjvm}".encode()).hexdigest()
    target = cache_dir / f"libhdfs-{key[:12]}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir / "libhdfs.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix="libhdfs-build-") as scratch:
                built = Path(scratch) / "built"
                built.mkdir()
                _build(Path(scratch), built / "libhdfs.so", libjvm, say)
                built.rename(target)
            say(f"kept libhdfs.so in {target}")
    return target


def java_home() -> Path:
    """Of the Java that is on the PATH.

    Raises:
        LocalHdfsError: if there is none, or it has no libjvm.so where Java 9 and later have it.
    """
    java = shutil.which("java")
    if java is None:
        raise LocalHdfsError("java is missing: apt-get install default-jre-headless")
    home = Path(java).resolve().parents[1]
    if not (home / "lib/server/libjvm.so").is_file():
        raise LocalHdfsError(f"{home} has no lib/server/libjvm.so: is it a Java 9 or later?")
    return home


def _build(scratch: Path, target: Path, libjvm: Path, say: Say) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise LocalHdfsError("there is no C compiler: apt-get install gcc")
    say(f"fetching {PYDOOP[0]} and {JPYPE[0]} (1.5 MB, once) to compile libhdfs.so")
    sources = scratch / "sources"
    sources.mkdir()
    for requirement, wanted in (PYDOOP, JPYPE):
        _unpack(download_source(requirement, wanted, scratch, say), sources)
    folders = [sources, sources / "include", sources / "os/posix"]
    files = [file for folder in ("", "common", "os/posix") for file in sorted((sources / folder).glob("*.c"))]
    includes = [f"-I{folder}" for folder in folders]
    libraries = [f"-L{libjvm.parent}", "-ljvm", f"-Wl,-rpath,{libjvm.parent}"]
    run_tool([compiler, *_FLAGS, *includes, *map(str, files), *libraries, "-o", str(target)], scratch)


def _unpack(archive: Path, target: Path) -> None:
    """Only the C sources and the header, without the folders above them."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            below = "jni.h" if name == _HEADER else name.removeprefix(_SOURCES)
            wanted = name == _HEADER or (below != name and below.endswith((".c", ".h")) and "windows" not in below)
            if wanted and member.isfile() and (source := tar.extractfile(member)):
                (target / below).parent.mkdir(parents=True, exist_ok=True)
                with source, (target / below).open("wb") as out:
                    shutil.copyfileobj(source, out)


def main() -> int:
    """The command line; see the module's docstring."""
    try:
        print(fetch_libhdfs(default_cache_dir(), lambda text: print(text, file=sys.stderr)))
    except LocalHdfsError as error:
        print(f"libhdfs_build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
