"""Pipelines that the LoRA tests share: built once, and left as they were by every test."""

from collections.abc import Callable

import pytest

from tests.engine.lora_bench import Bench


@pytest.fixture(scope="session")
def benches(tmp_path_factory) -> Callable[[str], Bench]:
    """A bench for each family, made when it is first asked for."""
    found: dict[str, Bench] = {}

    def bench(family: str) -> Bench:
        if family not in found:
            found[family] = Bench(family, tmp_path_factory.mktemp("lora"))
        return found[family]

    return bench
