"""One world, written once for all tests of it: half of the demo's size."""

from pathlib import Path

import pytest

from mini_chat.world.generate import WorldSizes, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    write_world(directory, 0, WorldSizes(pretrain_documents=30_000, sft_dialogues=20_000, preferences=2_000))
    return directory
