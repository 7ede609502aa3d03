"""The fleet on a Ray cluster of two nodes, each with processes of its own."""

import importlib.util
import sys
import time
from dataclasses import replace

import psutil
import pytest

from device_runtime import weights
from device_runtime.errors import RunError
from fleet.engines import stand_in
from fleet.on_ray import Ray
from fleet.settings import Computing
from tests.toy_engines import BASE, dies, job, refuses, same, slow
from tests.toy_fleet import learning, lived

if importlib.util.find_spec("ray") is None:  # it reads its environment when it is imported
    pytest.skip("Ray is not installed", allow_module_level=True)
STORE_BYTES = 80_000_000
# in a process that has done little else: among all other tests the cluster can stand still
on_cluster = pytest.mark.prove


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one core each, as `ray start` makes them on two machines."""
    patch = pytest.MonkeyPatch()
    for name, value in {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "ab" * 32,
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        patch.setenv(name, value)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    yield cluster.address
    cluster.shutdown()
    patch.undo()


@pytest.fixture
def engine(cluster):
    """Of training that takes a while."""
    ray = Ray(slow, b"", 0, cluster)
    yield ray
    ray.close()


def computing():
    """The processes of all nodes that are at a job just now."""
    return [each for each in psutil.process_iter(["name"]) if "ray::_compute" in each.name()]


@on_cluster
def test_a_fleet_has_the_same_bytes_on_a_cluster(
    cluster, tiny_bundle, trusted, tmp_path, tiny_corpus
):
    settings = learning(tiny_bundle, trusted)
    here = lived(settings, tmp_path / "here", tiny_bundle, tiny_corpus)
    there = replace(settings.training, computing=Computing.RAY, address=cluster)
    other = lived(replace(settings, training=there), tmp_path / "ray", tiny_bundle, tiny_corpus)
    assert weights.to_bytes(here[0]) == weights.to_bytes(other[0])
    assert here[1].tobytes() == other[1].tobytes()


@on_cluster
def test_the_jobs_of_processes_that_are_killed_are_computed_again(engine):
    tickets = [engine.submit(job(number), BASE) for number in range(4)]
    while not (at_work := computing()):
        time.sleep(0.05)
    for process in at_work:
        process.kill()
    for number, ticket in enumerate(tickets):
        assert same(engine.result(ticket), number)


@on_cluster
def test_what_is_wrong_on_a_node_is_said_here(cluster):
    ray = Ray(refuses, b"", 0, cluster)
    ticket = ray.submit(job(0), BASE)
    with pytest.raises(RunError, match="interpreter: there is none; install one"):
        ray.result(ticket)
    ray.close()


@on_cluster
def test_a_job_that_kills_whoever_computes_it_is_given_up(cluster):
    ray = Ray(dies, b"", 0, cluster)
    ticket = ray.submit(job(0), BASE)
    with pytest.raises(RunError, match="lost again and again"):
        ray.result(ticket)
    ray.close()


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match="install the `scale` extra"):
        Ray(stand_in, b"", 1, "")


def test_where_no_cluster_is_it_says_how_to_start_one():
    with pytest.raises(RunError, match=r"no cluster at 127\.0\.0\.1:1 .*ray start --head"):
        Ray(stand_in, b"", 1, "127.0.0.1:1")
