"""The rooms of chattts_serving and the arrows between them, as README.md draws them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "chattts_serving"
ROOMS = ("text", "voice", "engine", "engine.cpu", "engine.gpu", "speech", "triton", "launcher")
COMMANDS = ("server", "probe", "demo")  # modules that are run; nobody imports them
FOREIGN = {  # packages that one room alone may import
    "torch": {"engine.gpu"},
    "triton": {"engine.gpu"},
    "wetext": {"text"},
    "tokenizers": {"text"},
    "soxr": {"voice"},
}
MOST_LINES = 400
KERNELS = {"engine/gpu/triton_kernels.py"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(name: str) -> str:
    """The room of a module below chattts_serving, "" for what all rooms speak of."""
    fitting = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    return max(fitting, key=len, default="")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that the file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inner_imports(path: Path) -> set[str]:
    return {name.partition(".")[2] for name in imports(path) if name.startswith("chattts_serving.")}


def drawn() -> dict[str, set[str]]:
    """The arrows of the picture in README.md: room -> the rooms that it may import from."""
    picture = re.search(r"<!-- rooms -->\n+```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert picture, "README.md has no picture of the rooms"
    rows = re.findall(r"^(\S+) +-> (.+)$", picture[1], re.MULTILINE)
    return {room: set(targets.split(", ")) - {"-"} for room, targets in rows}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_from_where_the_picture_says(path):
    room = room_of(name_of(path))
    if name_of(path) in COMMANDS:
        return
    reached = {room_of(name) for name in inner_imports(path)} - {room, ""}
    assert reached <= drawn().get(room, set()), f"{name_of(path)} may not import from {sorted(reached)}"


def test_every_arrow_of_the_picture_is_one_that_is_used():
    used = {room: set() for room in ROOMS}
    for path in modules():
        room = room_of(name_of(path))
        if room:
            used[room] |= {room_of(name) for name in inner_imports(path)} - {room, ""}
    assert used == drawn()


def test_the_arrows_make_no_circle():
    left = drawn()
    while left:
        free = [room for room, targets in left.items() if not targets & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


def test_nobody_imports_a_command():
    for path in modules():
        assert not inner_imports(path) & set(COMMANDS), path


@pytest.mark.parametrize("package", FOREIGN)
def test_a_package_is_imported_in_its_room_alone(package):
    rooms = {room_of(name_of(path)) for path in modules() if package in {name.split(".")[0] for name in imports(path)}}
    assert rooms == FOREIGN[package]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_in_at_most_four_lines_what_it_knows_and_must_not_know(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    assert "ust not know" in text
    assert len(text.splitlines()) <= 4


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_is_read_in_one_sitting(path):
    if path.relative_to(PACKAGE).as_posix() not in KERNELS:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_tests_stand_beside_what_they_test():
    """Where a module has a test file of its name below tests/ROOM, it is the room of the module."""
    rooms = {room.partition(".")[0] for room in ROOMS}
    homes = {name_of(path): path.parent.relative_to(PACKAGE) for path in modules() if path.stem != "__init__"}
    by_leaf = {name.rpartition(".")[2]: home for name, home in homes.items()}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder, leaf = path.parent.relative_to(ROOT / "tests"), path.stem.removeprefix("test_")
        if folder.parts[:1] and folder.parts[0] in rooms and leaf in by_leaf:
            assert (PACKAGE / folder / f"{leaf}.py").exists(), f"{path} belongs to {by_leaf[leaf]}"
