"""What `import flowreg_gpu` does and does not do, and what its modules take from each other."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import pathlib
import re
import sys

import pytest

import flowreg_gpu
from tests.programs import run_program

PACKAGE = pathlib.Path(flowreg_gpu.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = {
    "BaseExecutor",
    "GPUExecutor",
    "MultiprocessingExecutor",
    "Options",
    "SequentialExecutor",
    "ThreadingExecutor",
    "apply_file",
    "estimate_flow",
    "gpu_status",
    "map_frames",
    "register",
    "register_file",
    "smooth_file",
    "warp",
    "write_report",
}


def loaded_after(statement):
    """Top-level modules that a fresh interpreter holds after a statement, apart from those it starts with."""
    script = f"import json, sys\nbefore = set(sys.modules)\n{statement}\n" + (
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = run_program("-W", "error", "-c", script)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_package_imports_no_library():
    foreign = loaded_after("import flowreg_gpu; flowreg_gpu.__version__; dir(flowreg_gpu)") - sys.stdlib_module_names
    assert foreign == {"flowreg_gpu"}


@pytest.mark.parametrize("name", ["Options", "gpu_status", "register_file"])
def test_names_load_no_optional_library(name):
    loaded = loaded_after(f"import flowreg_gpu; flowreg_gpu.{name}")
    assert not loaded & {
        "cupy",
        "pyflowreg",
        "cv2",
        "h5py",
        "matplotlib",
        "skimage",
    }  # numba takes scipy if it is there
    if name == "Options":
        assert not loaded & {"numba", "tifffile"}


def test_public_names():
    assert set(flowreg_gpu.__all__) >= PUBLIC | {"__version__"}
    for name in flowreg_gpu.__all__:
        value = getattr(flowreg_gpu, name)
        if name != "__version__":
            assert value.__name__ == name
            assert value.__module__.startswith("flowreg_gpu.")
            assert inspect.getdoc(value)
    assert dir(flowreg_gpu) == sorted(flowreg_gpu.__all__)


def test_type_checkers_see_the_same_names():
    """The literal `__all__`, the imports under TYPE_CHECKING and the table of homes agree, name by name."""
    tree = ast.parse(pathlib.Path(flowreg_gpu.__file__).read_text(encoding="utf-8"))
    (listed,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    (branch,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {
        alias.name: node.module.removeprefix("flowreg_gpu.")
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == flowreg_gpu._HOMES
    assert listed == sorted(listed)
    assert set(listed) == {"__version__", *imported}


def test_star_import():
    namespace = {}
    exec("from flowreg_gpu import *", namespace)
    assert set(flowreg_gpu.__all__) <= set(namespace)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'flowreg_gpu' has no attribute 'registre'"):
        flowreg_gpu.registre  # noqa: B018
    assert not hasattr(flowreg_gpu, "numpy")


def test_signatures_that_other_code_relies_on():
    parameters = {
        "register": ["movie", "reference", "executor", "options"],
        "register_file": ["source", "target", "executor", "reference", "flow_file", "options"],
        "apply_file": ["flow_file", "source", "target", "executor", "reference", "interpolation"],
        "estimate_flow": ["fixed", "moving", "options"],
        "warp": ["frames", "flow", "reference", "interpolation"],
        "map_frames": [
            *("func", "stack", "out", "n_workers", "progress", "chunk", "dtype", "shape", "timeout"),
            "overwrite",
        ],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(flowreg_gpu, name)).parameters)[: len(expected)] == expected
    batch = inspect.signature(flowreg_gpu.BaseExecutor.process_batch).parameters
    assert list(batch) == [
        "self",
        "batch",
        "batch_proc",
        "reference_raw",
        "reference_proc",
        "w_init",
        "get_displacement_func",
        "imregister_func",
        "interpolation_method",
        "progress_callback",
        "kwargs",
    ]
    assert batch["interpolation_method"].default == "cubic"


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", flowreg_gpu.__version__)


def test_version_is_that_of_the_metadata():
    try:
        installed = importlib.metadata.version("flowreg-gpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flowreg-gpu is not installed, only importable")
    assert installed == flowreg_gpu.__version__


def test_kernels_are_where_they_are_looked_for():
    """In a wheel inside the package, in a checkout beside it."""
    folder = PACKAGE / "kernels" if (PACKAGE / "kernels").is_dir() else PACKAGE.parent / "kernels"
    assert folder.is_dir()
    assert not list(folder.rglob("*.py"))


# Who imports whom is said by import-linter's contracts (pyproject.toml); here, what modules load and name


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """The package or module right below flowreg_gpu that a dotted name lies in."""
    return module.split(".")[1] if module.startswith("flowreg_gpu.") else module


def private_names_of_others(text, own):
    """Names with a leading underscore that a module takes from another room, by import or as an attribute."""
    found, modules = [], {}
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "flowreg_gpu":
            for alias in node.names:
                origin = f"{node.module}.{alias.name}"
                modules[alias.asname or alias.name] = origin
                if alias.name.startswith("_") and room(origin) != room(own):
                    found.append(origin)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            origin = modules[node.value.id]
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private and room(origin) != room(own):
                found.append(f"{origin}.{node.attr}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_private_name_crosses_a_package(path):
    assert private_names_of_others(path.read_text(encoding="utf-8"), module_name(path)) == []


def test_the_rule_of_private_names_sees_both_ways():
    text = "from flowreg_gpu.cpu.warp import _clamp\nfrom flowreg_gpu.io import base\nbase._Reader\n"
    assert private_names_of_others(text, "flowreg_gpu.cli.main") == [
        "flowreg_gpu.cpu.warp._clamp",
        "flowreg_gpu.io.base._Reader",
    ]
    assert private_names_of_others(text, "flowreg_gpu.io.array") == ["flowreg_gpu.cpu.warp._clamp"]


def test_workers_load_numpy_and_the_standard_library_only():
    loaded = loaded_after("import flowreg_gpu.workers.map_frames") - sys.stdlib_module_names
    assert {"flowreg_gpu", "numpy"} <= loaded
    assert not loaded & {"numba", "llvmlite", "tifffile", "cupy", "scipy", "h5py", "tqdm"}


def test_the_command_line_loads_nothing_until_it_knows_the_command():
    assert not loaded_after("import flowreg_gpu.cli.main") & {"numpy", "numba", "tifffile", "tqdm"}
    assert not loaded_after("import flowreg_gpu.benchmark.row") & {"cupy", "pyflowreg", "cv2", "torch"}


def test_there_are_no_rooms_without_a_subject():
    assert not {path.stem for path in SOURCES} & {"utils", "util", "core", "common", "helpers", "misc"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_import(path):
    if module_name(path).endswith(("__main__", "cuda.device")):
        pytest.skip("runs, or needs a library that is optional")
    importlib.import_module(module_name(path))
