"""What is said where pyflowreg is missing, unusable, or stands on OpenCV 5; none of it needs pyflowreg."""

import sys
import types

import pytest

import flowreg_gpu.pyflowreg as drop_in
from flowreg_gpu.pyflowreg.library import INSTALL, check_opencv, part
from tests.programs import run_program


@pytest.fixture
def stand_in(monkeypatch):
    """An empty package in the place of the installed pyflowreg, or of none."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyflowreg"]:
        monkeypatch.delitem(sys.modules, name)
    package = types.ModuleType("pyflowreg")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "pyflowreg", package)
    return package


@pytest.mark.parametrize(
    ("name", "arguments"), [("enable", ()), ("compensate_arr", (1, 2)), ("compensate_recording", (None,))]
)
def test_missing(monkeypatch, stand_in, name, arguments):
    class Finder:
        def find_spec(self, name, *_):
            if name == "pyflowreg":
                raise ModuleNotFoundError("No module named 'pyflowreg'", name="pyflowreg")

    monkeypatch.delitem(sys.modules, "pyflowreg")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ImportError) as raised:
        getattr(drop_in, name)(*arguments)
    assert str(raised.value) == f"pyflowreg is not installed; install it with: {INSTALL}"


def test_disable_asks_for_nothing(stand_in):
    drop_in.disable()


def test_too_old(monkeypatch, stand_in):
    runtime = types.ModuleType("pyflowreg._runtime")
    runtime.RuntimeContext = type("RuntimeContext", (), {})
    monkeypatch.setitem(sys.modules, "pyflowreg._runtime", runtime)
    with pytest.raises(ImportError, match=r"pyflowreg .+ cannot be used \(.+register_parallelization_executor.+pip"):
        drop_in.enable()


def test_a_part_of_it_is_missing(stand_in):
    with pytest.raises(ImportError, match=r"cannot be used \(No module named 'pyflowreg.core'\); .* pip install"):
        part("core", "list_backends")


@pytest.mark.parametrize(("version", "warned"), [("5.0.0", True), ("5.1.0-dev", True), ("4.14.0", False)])
def test_opencv(monkeypatch, recwarn, version, warned):
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(__version__=version))
    if warned:
        with pytest.warns(
            RuntimeWarning, match=rf"OpenCV {version} .* damaged there, what flowreg_gpu computes is not"
        ):
            check_opencv()
    else:
        check_opencv()
        assert not recwarn


def test_importing_the_drop_in_imports_no_pyflowreg():
    script = "import sys, flowreg_gpu.pyflowreg; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    done = run_program("-c", script)
    assert done.returncode == 0, done.stderr
    assert not {"'pyflowreg'", "'cv2'", "'pydantic'"} & set(done.stdout.strip("[]\n").split(", "))
