"""The surface: what can be imported, from where, and that imports point down only."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import backpressure
import ringbuf
from tests.support.paths import ROOT

# Section 4 of the design: other people's scripts use these names.
RINGBUF = {
    "MessageRing",
    "Messages",
    "Reservation",
    "TokenBucket",
    "RingBuffer",
    "RateWindow",
    "LatencyHistogram",
}
BACKPRESSURE = {
    *(
        "BufferManager",
        "BufferConfig",
        "Priority",
        "Admission",
        "Batch",
        "EventType",
        "Durability",
        "WhenFull",
    ),
    *("CircuitBreaker", "CircuitBreakerConfig", "State", "Permit", "CircuitOpenError"),
    *("BackpressureMonitor", "BackpressureMonitorConfig", "Pressure"),
    *("AdaptiveBatchManager", "AdaptiveBatchConfig"),
    *("FlowControlManager", "FlowControlConfig", "EmergencyModeConfig", "Grant"),
    *("MonotonicClock", "BackpressureError", "BufferFull", "BufferClosed"),
}

# What is imported by its own name.
SUBMODULES = {"http", "logging", "metrics", "sinks", "sources", "spill", "testing"}

# Lower floors first, as folders of src/backpressure. A module may import from its own
# floor and from those below it.
FLOORS = [
    {"ringbuf"},
    {"base"},
    {"policies"},
    {"spill", "lanes"},
    {"buffer", "delivery", "buffer_manager"},
    {"sinks", "sources", "metrics", "logging", "testing"},
    {"http", "service", "cli", "__main__"},
]
# BufferManager.aio makes the asynchronous face on first use; type-checking imports draw
# no arrow.
PACKAGE = Path(backpressure.__file__).parent


@pytest.mark.parametrize(("package", "names"), [(ringbuf, RINGBUF), (backpressure, BACKPRESSURE)])
def test_public_names(package: types.ModuleType, names: set[str]) -> None:
    assert names <= set(package.__all__)
    assert len(package.__all__) == len(set(package.__all__))
    for name in package.__all__:
        getattr(package, name)  # which may be what imports it
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(package.__all__), (
        "what can be imported and what is named in __all__ differ"
    )


LAZY = [backpressure, backpressure.spill]


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_read_what_is_imported(package: types.ModuleType) -> None:
    """A lazy package has its names three times: for `*`, for type checkers, and the
    table that it imports by.
    """
    tree = ast.parse(Path(str(package.__file__)).read_text())
    checked = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "typing.TYPE_CHECKING"
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: module for module, names in package._HOMES.items() for name in names.split()}
    assert homes == checked
    assert set(homes) == set(package.__all__)
    for name, module in homes.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'x'"):
        package.x  # noqa: B018


def loaded_by(code: str) -> set[str]:
    shown = subprocess.check_output(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"], text=True
    )
    return set(shown.split())


def test_a_package_is_imported_without_what_it_has() -> None:
    assert not {"numpy", "ringbuf", "backpressure.buffer_manager"} & loaded_by(
        "import backpressure"
    )
    assert not {"numpy", "backpressure.spill.store"} & loaded_by("import backpressure.spill")


def test_a_buffer_in_memory_loads_no_disk_tier_and_nothing_that_few_need() -> None:
    loaded = loaded_by(
        "from backpressure import BufferManager; b = BufferManager(); b.add_events([b'a']); "
        "b.get_batch().ack(); b.close()"
    )
    assert "backpressure.buffer_manager" in loaded
    dear = {
        *("asyncio", "concurrent.futures.thread", "hashlib", "json", "socket", "statistics"),
        *("backpressure.lanes.durable_lane", "backpressure.spill.store", "urllib", "zstandard"),
    }
    # A plug-in of coverage or of the interpreter's may have some of them before.
    assert not dear & (loaded - loaded_by("import numpy"))


def test_all_names_at_once() -> None:
    names: dict[str, object] = {}
    exec("from backpressure import *", names)
    assert set(backpressure.__all__) <= set(names)


def test_a_public_submodule_that_was_there_with_the_package_still_is() -> None:
    loaded = loaded_by("import backpressure; backpressure.spill.DeadLetterStore")
    assert "backpressure.spill.dead_letters" in loaded


@pytest.mark.parametrize("package", [ringbuf, backpressure])
def test_every_public_name_is_documented(package: types.ModuleType) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        assert value.__doc__, f"{package.__name__}.{name} has no docstring"
        assert not str(value.__doc__).startswith(f"{name}("), (
            f"{package.__name__}.{name} has a generated docstring only"
        )


@pytest.mark.parametrize("package", [ringbuf, backpressure])
def test_dir_shows_what_is_public(package: types.ModuleType) -> None:
    """In a process of its own: which submodules a package has depends on what was
    imported before.
    """
    lists = f"import {package.__name__} as package; print(*dir(package))"
    shown = subprocess.check_output([sys.executable, "-c", lists], text=True).split()
    names = {name for name in shown if not name.startswith("_")}
    assert names - SUBMODULES == set(package.__all__)
    assert {"__all__", "__doc__", "__name__", "__path__"} < set(shown)


def test_dir_shows_public_submodules_that_were_imported() -> None:
    for name in SUBMODULES - {"http"}:
        importlib.import_module(f"backpressure.{name}")
    assert SUBMODULES - {"http"} < set(dir(backpressure))
    assert not {"base", "policies", "lanes", "buffer", "delivery", "cli"} & set(dir(backpressure))


def floor_of(module: str) -> int:
    top = module.split(".")[1] if module.startswith("backpressure.") else module
    for number, floor in enumerate(FLOORS):
        if top in floor:
            return number
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports when it runs: not those under
    `if TYPE_CHECKING`.
    """
    found: set[str] = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(inner for child in node.body for inner in ast.walk(child))
        elif isinstance(node, ast.Import) and node not in skipped:
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node not in skipped:
            assert node.level == 0, f"{path}: imports are absolute here"
            found.add(node.module or "")
    return {name for name in found if name.split(".")[0] in ("backpressure", "ringbuf")}


def test_imports_point_down() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert len(files) > 15
    for path in files:
        relative = path.relative_to(PACKAGE).with_suffix("")
        here = floor_of("backpressure." + ".".join(relative.parts))
        for name in imports_of(path):
            assert name != "backpressure", (
                f"{path.name}: import from the module, not from the package"
            )
            there = floor_of("ringbuf" if name.startswith("ringbuf") else name)
            assert there <= here, f"{path.name} (floor {here}) imports {name} (floor {there})"


# Lower folders first, as in src/ringbuf: the products on the top floor know nothing of
# each other.
CORE = [{"_core"}, {"_shared"}, {"_messages", "_records", "_meters"}]
CORE_FILES = [
    path
    for path in Path(ringbuf.__file__).parent.rglob("*")
    if path.suffix in (".py", ".pyx", ".pyi", ".pxd")
]
IMPORT_OF_OURS = re.compile(r"^\s*(?:from|import|cimport)\s+((?:ringbuf|backpressure)[\w.]*)", re.M)


def test_the_core_imports_down_only() -> None:
    root = Path(ringbuf.__file__).parent
    assert len(CORE_FILES) > 50
    arrows = 0
    for path in CORE_FILES:
        if path.parent == root:
            continue
        folder = path.parent.name
        here = next(number for number, floor in enumerate(CORE) if folder in floor)
        assert not re.search(r"^\s*from\s+\.", path.read_text(), re.M), f"{path}: a relative import"
        for module in IMPORT_OF_OURS.findall(path.read_text()):
            assert module.startswith("ringbuf._"), (
                f"{path}: import from the module, not from the package"
            )
            other = module.split(".")[1]
            there = next(number for number, floor in enumerate(CORE) if other in floor)
            assert other == folder or there < here, f"{folder}/{path.name} imports {module}"
            arrows += 1
    assert arrows > 100


def test_ringbuf_knows_nothing_of_policies() -> None:
    for path in CORE_FILES:
        assert "import backpressure" not in path.read_text()
        assert "from backpressure" not in path.read_text()


# The folders of tests lie as those of src/backpressure do. Those of floor 5 are
# subjects of tests/edges; PROVING has what no folder of the source stands for.
MIRRORED = {"base", "policies", "spill", "lanes", "buffer", "delivery", "http", "service", "cli"}
EDGES = {"sinks", "sources", "metrics", "logging", "testing"}
PROVING = {"examples", "edges", "project", "ringbuf", "stress", "torture", "golden", "support"}


def files_in(folder: Path) -> set[str]:
    """But for what a build, Python or an editor leaves there."""
    built = (".so", ".pyd", ".c", ".cpp")
    return {
        path.name
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in built and not path.name.startswith(".")
    }


def folders_in(folder: Path) -> set[str]:
    """Those with Python in them: a switch between branches leaves empty ones behind."""
    return {path.name for path in folder.iterdir() if any(path.rglob("*.py"))}


def test_everything_lies_in_the_folder_of_its_subject() -> None:
    source, tests = ROOT / "src" / "backpressure", ROOT / "tests"
    assert files_in(source) == {"__init__.py", "__main__.py", "buffer_manager.py", "py.typed"}
    assert files_in(ROOT / "src" / "ringbuf") == {"__init__.py", "py.typed"}
    assert files_in(tests) == {"__init__.py", "conftest.py"}
    assert folders_in(source) == MIRRORED | EDGES
    assert folders_in(tests) <= MIRRORED | PROVING
    for name in MIRRORED & folders_in(tests):
        subjects = {path.name.partition(".")[0] for path in (source / name).iterdir()}
        assert folders_in(tests / name) <= subjects, f"no such subject in {source / name}"
    for file in tests.rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


# The rooms that are one thing with BufferManager; all others use what is public.
_INSIDE = ("buffer/", "delivery/", "buffer_manager.py")


def private_members_of(path: Path) -> set[str]:
    """Private names that a file takes from something that is called a buffer."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        owner = node.value
        name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        if name.strip("_") in ("buffer", "manager", "aio") and not node.attr.startswith("__"):
            found.add(node.attr)
    return found


def test_no_room_but_its_own_knows_what_is_private_to_a_buffer() -> None:
    used = {
        str(path.relative_to(PACKAGE)): sorted(members)
        for path in sorted(PACKAGE.rglob("*.py"))
        if not str(path.relative_to(PACKAGE)).startswith(_INSIDE)
        and (members := private_members_of(path))
    }
    assert used == {}


def test_private_members_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("self._buffer._lanes, buffer._x, self.buffer.aio._finish, buffer.id\n")
    assert private_members_of(path) == {"_lanes", "_x", "_finish"}
