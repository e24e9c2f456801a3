"""What `import flowreg_gpu` does and does not do, and who may import whom (design.md), read from the sources."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import pathlib
import re
import subprocess
import sys

import pytest

import flowreg_gpu

PACKAGE = pathlib.Path(flowreg_gpu.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = {
    "BaseExecutor",
    "GPUExecutor",
    "MultiprocessingExecutor",
    "Options",
    "SequentialExecutor",
    "ThreadingExecutor",
    "estimate_flow",
    "gpu_status",
    "map_frames",
    "register",
    "register_file",
    "warp",
}


def loaded_after(statement):
    """Top-level modules that a fresh interpreter holds after a statement, apart from those it starts with."""
    script = f"import json, sys\nbefore = set(sys.modules)\n{statement}\n" + (
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent, timeout=60)
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
        "estimate_flow": ["fixed", "moving", "options"],
        "warp": ["frames", "flow", "reference", "interpolation"],
        "map_frames": ["func", "stack", "out", "n_workers", "progress"],
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


# Who imports whom


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Every module that a file imports, wherever in it, under its full name; names may be modules as well."""
    own = module_name(path).split(".")
    package = own if path.name == "__init__.py" else own[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def offences(room, forbidden):
    """Imports of forbidden modules by the files of a room (a module or a folder)."""
    found = []
    for path in SOURCES:
        name = module_name(path)
        if name == f"flowreg_gpu.{room}" or name.startswith(f"flowreg_gpu.{room}."):
            for imported in imports_of(path):
                if any(imported == banned or imported.startswith(f"{banned}.") for banned in forbidden):
                    found.append(f"{name} imports {imported}")
    return found


def ours(*rooms):
    return [f"flowreg_gpu.{room}" for room in rooms]


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("cpu", ours("cuda", "io", "executors", "flow", "registration", "reference", "cli", "pyflowreg")),
        ("cuda", ours("cpu", "io", "executors", "flow", "registration", "reference", "cli", "pyflowreg")),
        ("flow", ours("cpu", "cuda", "io", "executors", "registration", "reference", "cli", "pyflowreg")),
        ("io", ours("cpu", "cuda", "executors", "flow", "registration", "reference", "cli", "pyflowreg")),
        ("executors", ours("io", "registration", "reference", "cli", "pyflowreg")),
        ("registration", ours("cuda", "cli", "pyflowreg")),
        ("overlap", ours("cpu", "cuda", "executors", "flow", "registration", "reference", "cli", "pyflowreg")),
        ("verification", ours("cpu", "cuda", "io", "flow", "registration", "cli", "pyflowreg")),
        ("reference", ours("cuda", "registration", "cli", "pyflowreg")),
        ("preprocess", ours("cpu", "cuda", "io", "executors", "flow", "registration", "reference", "cli")),
        ("resampling", ours("cpu", "cuda", "io", "executors", "flow", "registration", "reference", "cli")),
        ("relaxation", ours("cpu", "cuda", "io", "executors", "flow", "registration", "reference", "cli")),
        ("plan", ours("cpu", "cuda", "io", "executors", "flow", "registration", "reference", "cli")),
        ("options", ours("cpu", "cuda", "io", "executors", "flow", "registration", "reference", "cli", "preprocess")),
    ],
)
def test_import_rules(room, forbidden):
    assert offences(room, forbidden) == []


def test_registration_holds_no_numerics():
    """design.md: registration.py imports io, executors, options, and no numerics."""
    assert offences("registration", [*ours("cpu", "flow"), "numba", "scipy"]) == []


def test_the_benchmark_sits_on_top():
    """Only the command line imports it, when it is asked for; a row loads optional libraries where it uses them."""
    for path in SOURCES:
        name = module_name(path)
        if name != "flowreg_gpu.cli" and not name.startswith("flowreg_gpu.benchmark"):
            assert not any(imported.startswith("flowreg_gpu.benchmark") for imported in imports_of(path)), name
    assert not loaded_after("import flowreg_gpu.cli") & {"numpy", "numba", "tifffile", "tqdm"}
    assert not loaded_after("import flowreg_gpu.benchmark.row") & {"cupy", "pyflowreg", "cv2", "torch"}


def test_only_the_device_imports_cupy():
    found = [
        module_name(path)
        for path in SOURCES
        if any(imported.partition(".")[0] in ("cupy", "cupyx") for imported in imports_of(path))
    ]
    assert set(found) <= {"flowreg_gpu.cuda.device"}


def test_only_the_cpu_room_imports_numba():
    found = [module_name(path) for path in SOURCES if any(i.partition(".")[0] == "numba" for i in imports_of(path))]
    assert all(name.startswith("flowreg_gpu.cpu.") for name in found)


def test_nothing_of_the_package_needs_scipy_or_opencv():
    for path in SOURCES:
        foreign = {imported.partition(".")[0] for imported in imports_of(path)}
        assert not foreign & {"scipy", "cv2", "skimage", "matplotlib"}, path.name


def test_the_rules_see_every_way_to_import(tmp_path):
    """A test of the tests: an import inside a function, of a name, and relative, are all found."""
    file = PACKAGE / "cpu" / "warp.py"
    text = "def f():\n    from flowreg_gpu import io\n    from ..executors import base\n    import cupy.cuda as c\n"

    class Text(type(file)):
        def read_text(self, encoding=None):
            return text

    found = imports_of(Text(file))
    assert {"flowreg_gpu.io", "flowreg_gpu.executors.base", "cupy.cuda"} <= found


def test_there_are_no_rooms_without_a_subject():
    assert not {path.stem for path in SOURCES} & {"utils", "util", "core", "common", "helpers", "misc"}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_import(path):
    if module_name(path).endswith(("__main__", "cuda.device")):
        pytest.skip("runs, or needs a library that is optional")
    importlib.import_module(module_name(path))
