"""A container engine, where one answers: images that are there."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from docker import DockerClient
from docker.errors import DockerException

from deploy.local.docker import KAFKA_IMAGE

ROOT = Path(__file__).parents[2]


def kafka_image() -> str:
    """The broker's image, there; skips the test where no engine answers, fails it where one must."""
    image = os.environ.get("USAGE_TEST_KAFKA_IMAGE", KAFKA_IMAGE)
    return _there(image, lambda engine: engine.images.pull(image))


def service_image() -> str:
    """The image of deploy/Dockerfile, there; as kafka_image."""
    if built := os.environ.get("USAGE_TEST_SERVICE_IMAGE"):
        return _there(built, lambda engine: engine.images.pull(built))
    image = "usage-billing:tests"

    def build(engine: DockerClient) -> None:
        engine.images.build(path=str(ROOT), dockerfile="deploy/Dockerfile", tag=image, rm=True, network_mode="host")

    return _there(image, build, anew=True)


def _there(image: str, get: Callable[[DockerClient], object], *, anew: bool = False) -> str:
    """The image, after `get` has put it there where it is not, or (anew) in any case."""
    with warnings.catch_warnings():
        # docker-py leaves the socket of a connection open that could not be made.
        warnings.simplefilter("ignore", ResourceWarning)
        reason = None
        try:
            with contextlib.closing(docker.DockerClient.from_env(timeout=600)) as engine:
                if anew or not engine.images.list(image):
                    get(engine)
        except (DockerException, OSError) as error:
            reason = f"no container engine with the image {image}: {error}"
        gc.collect()
    if reason is not None:
        if os.environ.get("USAGE_TEST_CONTAINERS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return image
