"""Packaging of the distribution `edl-elastic`.

Invariant: packages are listed by hand, so that tests, examples and scripts are never installed
(tests/unit/test_packaging.py compares the list with the tree). The version is read from jobserver/__init__.py.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

PACKAGES = [
    "jobserver",
    "jobserver.cli",
    "jobserver.drill",
    "jobserver.page",
    "jobclient",
    "edl_collective",
    "edl_collective.coord",
    "edl_collective.driver",
    "checkpoints",
    "checkpoints.drivers",
    "distill",
    "distill.teacher",
]

#: Files besides modules that are installed; patterns are relative to each package.
DATA_PATTERNS = ["py.typed", "*.html", "*.css", "*.js", "*.svg"]

INSTALL_REQUIRES = [
    "click>=8.1",
    "cryptography>=42.0",
    "fastapi>=0.115",
    "fsspec>=2024.6",
    "httptools>=0.6",
    "httpx>=0.27",
    "kazoo>=2.10",
    "msgspec>=0.19",
    "numpy>=2.0",
    "psutil>=6.0",
    "rich>=13.7",
    "starlette>=0.40",
    "uvicorn>=0.30",
    "xxhash>=3.4",
]

#: the first with hsync
HDFS = ["hdfs-native>=0.14.7"]
HDFS3 = ["hdfs3>=0.3.1"]
LIBHDFS = ["pyarrow>=14.0"]
#: with an older one pip takes minutes to find a boto3 that moto and s3fs agree on
S3 = ["s3fs>=2026.9"]
TENSORBOARD = ["tensorboard>=2.15"]
WEBHDFS = ["requests>=2.31"]
TRITON_CLIENT = "tritonclient[http]>=2.40"
#: brings grpcio and protobuf
TRITON_GRPC_CLIENT = "tritonclient[grpc]>=2.40"
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings-python>=1.16"]
EXAMPLE = ["pillow>=11.0", "scikit-learn>=1.5"]

EXTRAS = {
    "train": ["torch>=2.1"],
    # Horovod compiles against the torch that is already installed, so pip cannot build it in its isolated build
    # environment: `pip install edl-elastic[horovod]` works only after a wheel of it was installed.
    # scripts/setup.sh builds that wheel.
    "horovod": ["horovod==0.28.1"],
    "hdfs": HDFS,
    "webhdfs": WEBHDFS,
    "libhdfs": LIBHDFS,
    "hdfs3": HDFS3,
    "s3": S3,
    "gpu": ["nvidia-ml-py>=12.535"],
    "tensorboard": TENSORBOARD,
    "example": EXAMPLE,
    "docs": DOCS,
    "bench": [*EXAMPLE, "safetensors>=0.4", "torchft-nightly", TRITON_CLIENT, TRITON_GRPC_CLIENT, *HDFS],
    "test": [
        # Names the boto3 that s3fs agrees with; moto takes any.
        "aiobotocore[boto3]>=3.0",
        # With flask-cors what the server of moto needs; its own extra brings much more.
        "flask>=3.0",
        "flask-cors>=5.0",
        "hypothesis>=6.100",
        "markdown-it-py>=3.0",
        "moto[s3]>=5.0",
        "mypy>=1.13",
        "openapi-spec-validator>=0.7",
        "pytest>=8.3",
        "pytest-asyncio>=0.24",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.7",
        "pyyaml>=6.0",
        "ruff>=0.8",
        "safetensors>=0.4",
        "schemathesis>=4.0",
        TRITON_CLIENT,
        *DOCS,
        *TENSORBOARD,
        *HDFS,
        *HDFS3,
        *LIBHDFS,
        *S3,
        *WEBHDFS,
        *EXAMPLE,
    ],
}


def read_version() -> str:
    """Return the version that jobserver/__init__.py states, without importing it."""
    text = (ROOT / "jobserver" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError('jobserver/__init__.py must contain a line like: __version__ = "0.1.0"')
    return found[1]


setup(
    name="edl-elastic",
    version=read_version(),
    description="Elastic PyTorch training on Horovod and ZooKeeper: jobs that keep training while workers come and go",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_data=dict.fromkeys(PACKAGES, DATA_PATTERNS),
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["edl = jobserver.cli.main:main"]},
)
