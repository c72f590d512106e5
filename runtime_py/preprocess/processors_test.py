"""A manifest that leaves out what its processor asks for."""

from __future__ import annotations

import pytest

from runtime_py.errors import PackageError
from runtime_py.preprocess.processors import make_processor


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(PackageError, match=r"no runtime\.\w+"):
        make_processor("minicpm_v", {}, None)
