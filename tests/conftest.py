"""What several tests use: a root on a local folder and one on S3, and the real photographs where they are."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvd.tests.running import Curated

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch and Faiss load: their pools spin against each other
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return Curated(tmp_path_factory.mktemp("curate"))


@pytest.fixture
def local_root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server (moto) on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_root(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root in an empty bucket, with the environment that reaches it.

    Its name is this process's own, as whoever takes a root removes the temporary files that others left for it here.
    """
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    bucket = f"lvd-test-{os.getpid()}"
    if fs.exists(bucket):
        fs.rm(bucket, recursive=True)
    fs.mkdir(bucket)
    yield f"s3://{bucket}/root"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    """The same test on a folder and on S3."""
    return request.getfixturevalue(f"{request.param}_root")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photographs and features; the test is skipped, and says so, where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent: no real photographs to test with")
    return SHARED
