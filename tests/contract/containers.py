"""A container engine, where one answers: its client, and images that are there."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings

import docker
import pytest
from docker.errors import DockerException

from deploy.local.docker import KAFKA_IMAGE


def kafka_image() -> str:
    """The broker's image, there; skips the test where no engine answers, fails it where one must."""
    image = os.environ.get("USAGE_TEST_KAFKA_IMAGE", KAFKA_IMAGE)
    with warnings.catch_warnings():
        # docker-py leaves the socket of a connection open that could not be made.
        warnings.simplefilter("ignore", ResourceWarning)
        reason = None
        try:
            with contextlib.closing(docker.DockerClient.from_env(timeout=120)) as engine:
                if not engine.images.list(image):
                    engine.images.pull(image)
        except (DockerException, OSError) as error:
            reason = f"no container engine with the image {image}: {error}"
        gc.collect()
    if reason is not None:
        if os.environ.get("USAGE_TEST_CONTAINERS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return image
