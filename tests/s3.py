"""A real S3 server for tests: moto's, in a process of its own on loopback."""

import contextlib
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import obstore
from obstore.store import from_url

SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing-key",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
    "AWS_REGION": "us-east-1",
}


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The address of the server, with an empty bucket `fedboard`."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            urllib.request.urlopen(urllib.request.Request(f"{url}/fedboard", method="PUT"))
            yield url
        finally:
            process.stdin.close()
            process.terminate()


def environment(url: str) -> dict[str, str]:
    """What a server is told to use it."""
    return {**KEYS, "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true"}


def spoil(key: str, data: bytes) -> None:
    """Put other bytes in place of an object, as a disk that lies would. The environment must be
    set.
    """
    obstore.put(from_url("s3://fedboard/"), key, data, mode="overwrite", use_multipart=False)
