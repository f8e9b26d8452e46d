"""Every node keeps every promise: plainly, on both event loops, and with reluctant neighbours."""

import os
from pathlib import Path

import pytest

from tests.support.nodes import BUILDERS, DEVICES, factory_of, run
from vblk.testing import CHECKS, Check, check_conformance

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_node_keeps_its_promise(kind: str, check: Check, tmp_path: Path) -> None:
    run(check(factory_of(BUILDERS[kind], tmp_path)))


@needs_root
@pytest.mark.parametrize("kind", DEVICES)
def test_a_device_keeps_all_promises(kind: str, tmp_path: Path) -> None:
    run(check_conformance(factory_of(DEVICES[kind], tmp_path)))


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_node_keeps_all_promises_on_uvloop(kind: str, tmp_path: Path) -> None:
    run(check_conformance(factory_of(BUILDERS[kind], tmp_path)), "uvloop")


@pytest.mark.parametrize(("seed", "loop"), [(1, "asyncio"), (2, "asyncio"), (3, "uvloop")])
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_node_keeps_all_promises_between_reluctant_ones(
    kind: str, seed: int, loop: str, tmp_path: Path
) -> None:
    factory = factory_of(BUILDERS[kind], tmp_path, over_seed=seed, below_seed=seed + 100)
    run(check_conformance(factory), loop)
