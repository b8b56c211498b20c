"""Fixtures of several files, and how the tests are run.

Without arguments, pytest runs all tests in several processes of one thread each; chosen files are run in one process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from interp_plugin import TextExplainer

# before torch and transformers are loaded, and also for the commands that tests run
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return no worker for chosen files, or None, one for each core."""
    return 0 if config.args_source is pytest.Config.ArgsSource.ARGS else None


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small classifier of bad and good."""
    from tiny_bert import save_classifier

    return str(save_classifier(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def default() -> TextExplainer:
    """Explainer of the default model."""
    from interp_plugin import TextExplainer, huggingface

    return TextExplainer(*huggingface.load(huggingface.default_model_path()))
