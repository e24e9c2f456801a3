"""What the pages say is true: their code runs, their commands exist, their links lead somewhere."""

import argparse
import ast
import dataclasses
import doctest
import importlib
import re
from pathlib import Path

import h5py
import pytest
import tifffile

import flowreg_gpu
from flowreg_gpu import executors
from flowreg_gpu.cli.main import main
from flowreg_gpu.engine.batch import STATISTICS
from flowreg_gpu.options import Options
from flowreg_gpu.pyflowreg import disable
from tests.docs.pages import PAGES, REPOSITORY, Block, anchors, commands, links, page_name, read_blocks
from tests.recordings import recording

every_page = pytest.mark.parametrize("page", PAGES, ids=page_name)
RUN = {"python", "bash", "toml"}
SHOWN = {"text"}  # what a program prints


@pytest.fixture(scope="module")
def movie():
    """The recording that most pages work with."""
    return recording(24, 64, 72, noise=0.02)


@pytest.fixture(scope="module")
def two_channels():
    """Frames (12, 2, 64, 72), in the order of an ImageJ file."""
    return recording(12, 64, 72, channels=2).frames.transpose(0, 3, 1, 2)


@pytest.fixture
def folder(tmp_path, monkeypatch, movie, two_channels):
    """The working directory of a page's code, with small recordings under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    for name in ("movie.tif", "part1.tif", "part2.tif"):
        tifffile.imwrite(name, movie.frames, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite("mean.tif", movie.truth)
    tifffile.imwrite("two_channels.tif", two_channels, imagej=True, metadata={"axes": "TCYX"})
    tifffile.imwrite("stack.tif", two_channels, photometric="minisblack")
    pages = two_channels.reshape(-1, 64, 72)
    tifffile.imwrite("interleaved.tif", pages, metadata=None, photometric="minisblack")
    movie.frames.tofile("frames.raw")
    with h5py.File("movie.h5", "w") as file:
        file["ch1"] = movie.frames
    # the best executor there is would start worker processes for every command
    monkeypatch.setattr(executors, "best_executor", lambda: "threading")
    yield tmp_path
    disable()  # what a page enables in pyflowreg


@pytest.fixture
def names(movie):
    """What the code of a page finds: it is the main program, and these names stand for the reader's arrays."""
    return {"__name__": "__main__", "movie": movie.frames, "reference": movie.truth}


def run_python(block, names):
    """Run the code of a block, with the page's line numbers in its tracebacks."""
    exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)


def run_commands(block):
    """Run the block's commands; they are all ours."""
    for program, *arguments in commands(block.text):
        assert program == "flowreg-gpu", f"{program} is not run here: mark the block with a reason"
        if "--help" in arguments:
            with pytest.raises(SystemExit, match="0"):
                main(arguments)
        else:
            assert main(arguments) == 0


def write_options(block):
    """Write the file that the first line names, and read it as options."""
    path = Path(block.text.splitlines()[0].removeprefix("# "))
    path.write_text(block.text, encoding="utf-8")
    Options.from_file(path)


@every_page
@pytest.mark.filterwarnings("ignore:executor='gpu' cannot be used:RuntimeWarning")
def test_code_of_a_page(page, folder, names):
    """From its first block to its last, in one folder, as somebody who follows the page runs it."""
    blocks = [block for block in read_blocks(page) if block.mark is None and block.language in RUN]
    if any("pyflowreg.motion_correction" in block.text for block in blocks):
        pytest.importorskip("pyflowreg")
    for block in blocks:
        if block.language == "python":
            run_python(block, names)
        elif block.language == "bash":
            run_commands(block)
        else:
            write_options(block)


@every_page
def test_every_block_is_run_or_says_why_not(page):
    for block in read_blocks(page):
        where = f"{page_name(page)}, line {block.line}"
        assert block.mark is not None or block.language in RUN | SHOWN, f"{where}: nothing runs {block.language!r}"
        assert block.mark is None or block.language not in SHOWN, f"{where}: needs no mark"


class _Parsed(Exception):
    """The command line was understood."""


@pytest.fixture
def only_parse(monkeypatch):
    """Stops `main` once its arguments have been understood."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *given):
        parse(self, *given)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@every_page
def test_code_that_is_not_run(page, only_parse):
    """Python compiles, our commands are understood, and files of the repository that others name exist."""
    for block in (block for block in read_blocks(page) if block.mark is not None):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "bash":
            for program, *arguments in commands(block.text):
                if program == "flowreg-gpu":
                    with pytest.raises(_Parsed):
                        main(arguments)
                for word in arguments:
                    if re.match(r"(tests|benchmarks|docs|examples|kernels|flowreg_gpu)/", word):
                        assert (REPOSITORY / word.partition("::")[0]).exists(), word


@every_page
def test_links(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@every_page
def test_paths_in_the_text_exist(page):
    """Files and folders that a page names in `code`: from the root of the repository, the package, or beside it."""
    roots = (REPOSITORY, REPOSITORY / "flowreg_gpu", page.parent)
    for path in re.findall(r"`((?:[A-Za-z]\w+/)+[\w.-]*)`", page.read_text(encoding="utf-8")):
        assert any((root / path).exists() for root in roots), path


def test_pages_and_code_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A page, of two\n<!-- not run: slow -->\n```bash\na && b \\\n  c # d\n```\n[x](y.md#z)\n```\n1\n```\n"
    )
    marked, plain = read_blocks(page)
    assert marked == Block(page, 4, "bash", "a && b \\\n  c # d", "slow")
    assert (plain.line, plain.language, plain.text, plain.mark) == (9, "", "1", None)
    assert commands(marked.text) == [["a"], ["b", "c"]]
    assert links(page) == ["y.md#z"]
    assert anchors(page) == {"a-page-of-two"}
    assert {"README.md", "docs/tutorial.md", "docs/dev/model.md"} <= set(map(page_name, PAGES))


# What else the pages promise


def test_every_option_is_in_the_table():
    """With its default."""
    text = (REPOSITORY / "docs" / "choosing-options.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, flags=re.M))
    assert set(rows) == {field.name for field in dataclasses.fields(Options)}
    for field in dataclasses.fields(Options):
        assert ast.literal_eval(rows[field.name].strip("`")) == field.default, field.name


def test_statistics_are_in_the_table():
    text = (REPOSITORY / "docs" / "quality-control.md").read_text(encoding="utf-8")
    assert set(STATISTICS) - {"constant", "diverged"} <= set(re.findall(r"`(\w+)`", text))


def test_public_names_are_in_the_reference():
    parts = (REPOSITORY / "docs" / "api").glob("*.rst")
    text = "".join(part.read_text(encoding="utf-8") for part in parts)
    documented = set(re.findall(r"^\.\. auto(?:class|function):: flowreg_gpu\.(\w+)$", text, flags=re.M))
    assert documented == set(flowreg_gpu.__all__) - {"__version__"}


@pytest.mark.parametrize(
    "module",
    [
        path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for path in sorted(REPOSITORY.glob("flowreg_gpu/**/*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ],
)
def test_examples_in_docstrings(module):
    """They are the code of the API reference."""
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_version_of_the_papers():
    version = re.escape(flowreg_gpu.__version__)
    assert re.search(rf"^version: {version}$", (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"), flags=re.M)
    assert re.search(rf"^## \[{version}\]", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)


def test_comments_name_pages_that_exist():
    """Code and kernels that refer to a page of the documentation, or to another file of the repository."""
    sources = [*REPOSITORY.glob("flowreg_gpu/**/*.py"), *REPOSITORY.glob("tests/**/*.py")]
    for source in [*sources, *REPOSITORY.glob("kernels/*.cu*")]:
        text = source.read_text(encoding="utf-8")
        for path in re.findall(r"\b(?:docs|benchmarks|kernels)/[\w/-]+\.(?:md|py|cu|cuh)\b", text):
            assert (REPOSITORY / path).exists(), f"{source}: {path}"
