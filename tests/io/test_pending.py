"""Outputs are refused before any work is done where they cannot be written."""

import errno

import pytest

from flowreg_gpu.io import check_output


def test_folder_of_the_output(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="folder of the output does not exist"):
        check_output(tmp_path / "missing" / "out.tif")
    with pytest.raises(IsADirectoryError):
        check_output(tmp_path)

    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError, match="takes no new file"):
        check_output(tmp_path / "out.tif")
