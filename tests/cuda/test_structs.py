"""What launchers say of structs and sizes in the kernels is what the kernels' text and the compiler say of them."""

import importlib
import pkgutil
import re

import numpy as np
import pytest

import flowreg_gpu.cuda
from flowreg_gpu.cuda import launch, prealign, statistics
from flowreg_gpu.cuda.source import kernel_files, kernel_source
from flowreg_gpu.cuda.structs import filled, struct
from flowreg_gpu.engine.batch import STATISTICS
from tests.emulation import CompileError
from tests.emulation.compiler import compile_kernel

TYPES = {"int": np.int32, "long long": np.int64, "float": np.float32, "double": np.float64, "float*": np.uintp}
MODULES = [
    importlib.import_module(f"flowreg_gpu.cuda.{one.name}") for one in pkgutil.iter_modules(flowreg_gpu.cuda.__path__)
]
LAUNCHERS = {module.FILE: module for module in MODULES if hasattr(module, "FILE")}
STRUCTS = [(file, name) for file, module in LAUNCHERS.items() for name in getattr(module, "STRUCTS", {})]


def without_comments_and_functions(body):
    """The text of a struct between its braces; a function leaves its head and a semicolon."""
    body, count = re.sub(r"//.*", "", body), 1
    while count:
        body, count = re.subn(r"\{[^{}]*\}", ";", body)
    return body


def body_of(text, name):
    """What stands between the braces of a struct."""
    begin = re.search(rf"^struct (?:__align__\(\d+\) )?{name} \{{", text, re.MULTILINE).end()
    depth, end = 1, begin
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return text[begin : end - 1]


def parsed(text, name, structs):
    """Dtype of a struct in the text of a kernel file, by the declarations of its members."""
    fields = {}
    for statement in without_comments_and_functions(body_of(text, name)).split(";"):
        if not statement.strip() or "(" in statement:
            continue
        kind, names = re.fullmatch(r"\s*((?:long )?\w+ ?\*?)\s*(.*?)\s*", statement, re.DOTALL).groups()
        for declared in names.split(","):
            member, count = re.fullmatch(r"\s*(\w+)(?:\[(\d+)\])?\s*", declared).groups()
            of = {**TYPES, **structs}[kind.strip()]
            fields[member] = of if count is None else (of, (int(count),))
    return struct(**fields)


def assertions(module):
    """Sizes that a launcher knows, as the compiler checks them."""
    sizes = launch.SIZES | getattr(module, "SIZES", {})
    for name, kind in getattr(module, "STRUCTS", {}).items():
        sizes[f"sizeof({name})"] = kind.itemsize
        sizes |= {f"__builtin_offsetof({name}, {field})": offset for field, (_, offset) in kind.fields.items()}
    return "".join(f'static_assert({expression} == {value}, "{value}");\n' for expression, value in sizes.items())


def test_every_file_is_compared():
    assert sorted(LAUNCHERS) == kernel_files()
    assert {name for _, name in STRUCTS} >= {"StripPlan", "Level", "Span", "Planes", "Peak", "FlowSums"}


@pytest.mark.parametrize(("file", "name"), STRUCTS)
def test_struct_is_that_of_the_text(file, name):
    """Names, order, types and sizes."""
    structs = LAUNCHERS[file].STRUCTS
    assert parsed(kernel_source(file), name, structs) == structs[name]


@pytest.mark.parametrize("file", LAUNCHERS)
def test_sizes_are_those_of_the_compiler(file):
    module = LAUNCHERS[file]
    compile_kernel(kernel_source(file) + assertions(module), module.EXPRESSIONS[0], contraction=False)


@pytest.mark.parametrize(
    ("module", "table", "name", "wrong"),
    [
        (statistics, "SIZES", "COLUMNS", 11),
        (prealign, "STRUCTS", "Peak", struct(value=np.float64, index=np.float64, count=np.int32)),
        (launch, "SIZES", "GROUP_THREADS", 256),
    ],
)
def test_drift_is_caught(monkeypatch, module, table, name, wrong):
    monkeypatch.setitem(getattr(module, table), name, wrong)
    launcher = prealign if module is launch else module
    with pytest.raises(CompileError, match="static assertion failed"):
        compile_kernel(kernel_source(launcher.FILE) + assertions(launcher), launcher.EXPRESSIONS[0], contraction=False)


@pytest.mark.parametrize(
    "members",
    ["int b, a; float c;", "int a; float b, c;", "int a, b; double c;", "int a, b; float c, d;", "int a; float c;"],
)
def test_other_members_are_caught(members):
    """Exchanged, of another type, more, fewer."""
    kind = struct(a=np.int32, b=np.int32, c=np.float32)
    text = "struct One { %s\n  __device__ int sum() const { if (a) { return a; } return b; }\n};"
    assert parsed(text % "int a, b;  // of both\n  float c;", "One", {}) == kind
    assert parsed(text % members, "One", {}) != kind


def test_columns_of_statistics():
    """The kernel's columns are those of a batch."""
    text = kernel_source("statistics.cu")
    names = re.search(r"enum Column \{(.*?)\}", text, re.DOTALL)[1].split(",")
    assert [name.strip().lower() for name in names] == [*STATISTICS, "columns"]


def test_struct_is_filled_by_name():
    kind = struct(a=np.int32, b=np.int64, c=(np.float32, (2,)))
    one = filled(kind, c=(1, 2), b=3, a=True)
    assert (one.shape, one["a"], one["b"], one["c"].tolist()) == ((), 1, 3, [1, 2])
    assert kind.itemsize == 24
    for values in ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3, "d": 4}):
        with pytest.raises(TypeError, match="expected"):
            filled(kind, **values)
