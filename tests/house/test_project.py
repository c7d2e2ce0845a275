"""The house rules that no linter knows: imports follow the floors, files stay short, and nothing
of one machine, of a registry, or pickled is committed. Every failure names the file and the line.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "trimtab"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
LINES_OF_ROOM = {
    "anchoring": 1050,
    "batching": 2830,  # which tokens are pooled, from states.py; trunks, how deep a pass goes
    "cli": 3890,  # push; --dial.kind, --with
    "compat": 550,
    "directions": 530,  # what differences say before a direction is fitted
    "dials": 5430,  # the card and the Hub; reft, doses
    "evaluation": 2870,
    "export": 2010,  # llama.cpp's LoRAs with their check
    "models": 3520,  # a model run from one of its layers
    "objectives": 1850,  # rankings, RePS
    "panel": 1460,  # what else a dial changes, budgets of it
    "pairs": 3400,  # readers of BiPO's behaviours, of lettered questions, of rankings
    "rendering": 1460,
    "report": 5200,  # the page of a panel
    "serve": 2020,  # the provider of Inspect, prompts in pieces
    "statistics": 710,
    "studies": 8550,  # a panel in evaluate, compare and a study of its own
    "study": 3050,
    "trl": 460,
    "training": 5050,  # any dial on any objective: poles, vectors, edits of states
}
"""What a room may come to, in lines of Python; other rooms are one file. A change that needs more raises
its number in its own commit, and says there what the lines are for; who makes a room smaller lowers it."""

# A room is a module or a package directly under src/trimtab. It imports from strictly lower floors
# or from itself. A new room is put here, and in the table of docs/architecture.md.
FLOORS = {
    0: (
        "bounds",
        "errors",
        "config_files",
        "holding",
        "foreign",
        "progress",
        "sites",
        "readout",
        "files",
        "old_names",
        "provenance",
        "statistics",
        "terminal",
        "pairs",
        "models",
    ),
    1.0: ("logprobs", "proofs", "sparing"),
    1.05: ("rendering",),
    1.1: ("batching",),
    1.2: ("states", "store"),
    1.25: ("trunk",),
    1.3: ("readings",),
    2: ("spaces", "directions", "objectives", "interventions"),
    3: ("dials",),
    3.5: ("damage",),
    4: ("training", "evaluation", "export", "anchoring"),
    4.5: ("panel",),
    5: ("study", "compat", "trl"),
    5.3: ("report",),
    5.5: ("studies",),
    6: ("serve",),
    6.5: ("inspect_provider",),
    7: ("cli",),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
FREE = {
    "bounds",
    "errors",
    "files",
    "foreign",
    "holding",
    "progress",
    "provenance",
    "readout",
    "sites",
    "terminal",
}
"""Rooms that every room may import, its own floor notwithstanding."""

TENSORS_ALONE = {"objectives", "spaces", "directions", "interventions"}
NOT_FOR_TENSORS = {"transformers", "tokenizers", "peft", "pathlib", "json"}
ROOMS_NOT_FOR_TENSORS = {"models", "batching", "states", "store", "readings", "pairs"}
NOT_FOR_REPORTS = {"torch", "transformers"}
BRING_TORCH = {"torch", "transformers", "peft", "accelerate"}


# Reading imports


def module_of(path: Path, base: Path = PACKAGE.parent) -> tuple[str, ...]:
    """`src/trimtab/training/trainer.py` is `("trimtab", "training", "trainer")`."""
    parts = path.relative_to(base).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """`(line, dotted name)` of all that a module imports, also inside functions.

    `from a import b` gives `a.b`; relative names are resolved against `package`, the package that
    the module lies in; `import_module("a.b")` counts too, and so does `trimtab.dials` after
    `import trimtab`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if (
                name in {"import_module", "__import__"}
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                yield node.lineno, first.value
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "trimtab":
            yield node.lineno, f"trimtab.{node.attr}"


def at_module_level(tree: ast.Module) -> ast.Module:
    """The statements that run on import: no function bodies, nothing under TYPE_CHECKING."""

    def keep(nodes: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from keep(node.orelse)
                continue
            inner = [s for s in ast.iter_child_nodes(node) if isinstance(s, ast.stmt)]
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.ExceptHandler | ast.match_case):
                    inner += part.body
            if inner:
                yield from keep(inner)
            else:
                yield node

    return ast.Module(body=list(keep(tree.body)), type_ignores=[])


def complaints(source: str, path: Path, base: Path = PACKAGE.parent) -> list[str]:
    """What a module's imports do against the house rules, each with file and line."""
    module = module_of(path, base)
    package = module if path.name == "__init__.py" else module[:-1]
    shown = path.relative_to(base.parent)
    if len(module) < 2 or module[1] == "__main__":
        return []  # the front door may name every room
    room = module[1]
    if room not in FLOOR_OF:
        return [f"{shown}:1: room '{room}' has no floor; give it one in FLOORS of this test"]

    tree = ast.parse(source, filename=str(path))
    found: list[str] = []

    def complain(line: int, text: str) -> None:
        found.append(f"{shown}:{line}: {text}")

    for line, name in imports(tree, package):
        top, _, rest = name.partition(".")
        if top != "trimtab":
            if room in TENSORS_ALONE and top in NOT_FOR_TENSORS:
                complain(line, f"'{room}' knows tensors alone, but imports '{top}'")
            if room == "report" and top in NOT_FOR_REPORTS:
                complain(line, f"'report' reads results and runs no model, but imports '{top}'")
            continue
        other = rest.partition(".")[0]
        if other == room or other in FREE or not other or other.startswith("__"):
            continue
        if other not in FLOOR_OF:
            complain(line, f"'{name}' is no room; import the name from the room it lives in")
        elif room in TENSORS_ALONE and other in ROOMS_NOT_FOR_TENSORS:
            complain(line, f"'{room}' knows tensors alone, but imports '{other}'")
        elif FLOOR_OF[other] >= FLOOR_OF[room]:
            complain(
                line,
                f"'{room}' (floor {FLOOR_OF[room]}) imports '{other}' (floor {FLOOR_OF[other]}); "
                "a room imports from strictly lower floors or from itself",
            )
    if room == "cli":
        for line, name in imports(at_module_level(tree), package):
            if name.partition(".")[0] in BRING_TORCH:
                complain(line, f"'cli' imports '{name}' before the verb is known; do it inside")
    return sorted(set(found))


# The floors


def test_imports_follow_the_floors():
    found = [c for path in SOURCES for c in complaints(path.read_text("utf-8"), path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        (
            "training/a.py",
            "def f():\n    from trimtab.study import x",
            ":2: 'training' (floor 4) imports 's",
        ),
        (
            "training/a.py",
            "from ..evaluation import x",
            ":1: 'training' (floor 4) imports 'evaluation'",
        ),
        (
            "training/a.py",
            "from .. import evaluation",
            ":1: 'training' (floor 4) imports 'evaluation'",
        ),
        (
            "training/__init__.py",
            "from ..cli.main import x",
            ":1: 'training' (floor 4) imports 'cli'",
        ),
        ("training/a.py", "from trimtab import load", "import the name from the room it lives in"),
        (
            "training/a.py",
            "import trimtab\ntrimtab.report.page()",
            ":2: 'training' (floor 4) imports 'rep",
        ),
        ("states.py", "import_module('trimtab.readings')", ":1: 'states' (floor 1.2) imports 'rea"),
        ("spaces/a.py", "import json", ":1: 'spaces' knows tensors alone, but imports 'json'"),
        ("spaces/a.py", "from trimtab.states import x", "tensors alone, but imports 'states'"),
        ("report/a.py", "import torch.nn as nn", ":1: 'report' reads results and runs no model"),
        ("cli/a.py", "try:\n    import torch\nexcept ImportError:\n    pass", ":2: 'cli' imports"),
        ("attic.py", "", "room 'attic' has no floor"),
    ],
)
def test_a_breach_is_named(file: str, source: str, expected: str):
    found = complaints(source, PACKAGE / file)
    assert len(found) == 1, found
    assert expected in found[0]
    assert found[0].startswith(f"src{os.sep}trimtab{os.sep}")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("training/a.py", "from trimtab.dials import x\nfrom . import b\nfrom .b import c"),
        ("pairs/a.py", "from trimtab.errors import DataError\nfrom ..readout import Needs"),
        ("objectives/a.py", "import torch\nfrom trimtab.readout import Needs"),
        ("study/a.py", "from trimtab import __version__\nimport trimtab.training.recipes"),
        ("cli/a.py", "def main():\n    import torch"),
        ("cli/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("__init__.py", "from trimtab.cli import main"),
    ],
)
def test_what_is_allowed_passes(file: str, source: str):
    assert complaints(source, PACKAGE / file) == []


def without_type_checking(tree: ast.Module) -> ast.Module:
    """A module but for what is there for type checkers alone."""

    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> Any:
            if "TYPE_CHECKING" in ast.unparse(node.test):
                return node.orelse
            return self.generic_visit(node)

    return Drop().visit(tree)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The first way back to where it starts, empty where there is none."""
    done: set[str] = set()

    def walk(at: str, path: list[str]) -> list[str]:
        if at in path:
            return [*path[path.index(at) :], at]
        if at in done:
            return []
        for other in sorted(graph.get(at, ())):
            if found := walk(other, [*path, at]):
                return found
        done.add(at)
        return []

    return next((found for start in sorted(graph) if (found := walk(start, []))), [])


def test_no_circle_of_imports():
    """Imports inside functions count: they hide a circle, and do not mend it."""
    modules = {".".join(module_of(path)): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        package = module_of(path) if path.name == "__init__.py" else module_of(path)[:-1]
        tree = without_type_checking(ast.parse(path.read_text("utf-8")))
        others = graph[module] = set()
        for _, name in imports(tree, package):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            others |= {name} - {"", "trimtab", module}
    del graph["trimtab"]  # the front door
    assert not (found := circle(graph)), " -> ".join(found)
    assert circle({"a": {"b"}, "b": {"c", "d"}, "d": {"b"}}) == ["b", "d", "b"]


def test_command_line_starts_without_torch():
    if not (PACKAGE / "cli" / "__init__.py").is_file() and not (PACKAGE / "cli.py").is_file():
        pytest.skip("no command line yet")
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import trimtab.cli"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    loaded = [line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if "|" in line]
    assert "trimtab.cli" in loaded
    heavy = sorted({m for m in loaded if m.partition(".")[0] in BRING_TORCH})
    assert not heavy, f"`import trimtab.cli` loads {', '.join(heavy[:5])}"


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_files_stay_short():
    counts = {str(path.relative_to(PACKAGE).as_posix()): lines_of(path) for path in SOURCES}
    found = [
        f"{name}: {n} lines; split it by noun (at most {MAX_LINES})"
        for name, n in counts.items()
        if n > MAX_LINES
    ]
    assert not found, "\n" + "\n".join(found)


def test_rooms_stay_small():
    rooms: dict[str, int] = {}
    for path in SOURCES:
        room = module_of(path)[1:2]
        if room:
            rooms[room[0]] = rooms.get(room[0], 0) + lines_of(path)
    found = [
        f"{room}: {n} lines of {most}; make it smaller, or raise LINES_OF_ROOM and say why"
        for room, n in rooms.items()
        if n > (most := LINES_OF_ROOM.get(room, MAX_LINES))
    ]
    found += [f"{room}: no such room" for room in LINES_OF_ROOM.keys() - rooms.keys()]
    assert not found, "\n" + "\n".join(found)


# What is committed


def committed() -> list[Path]:
    """Files that git tracks, and those that it would add: a fault shows before the commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        out = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [p for name in out.decode().split("\0") if name and (p := ROOT / name).is_file()]


def test_the_project_stays_small():
    """What a clone has to carry; training curves, arrays and runs' own figures are not committed."""
    sizes = {path: path.stat().st_size for path in committed()}
    worst = sorted(sizes, key=lambda path: -sizes[path])[:5]
    named = ", ".join(f"{p.relative_to(ROOT)} {sizes[p]:,}" for p in worst)
    assert sum(sizes.values()) < 10_000_000, f"{sum(sizes.values()):,} bytes; the largest: {named}"
    results = sum(n for path, n in sizes.items() if ROOT / "docs" / "results" in path.parents)
    assert results < 3_000_000, f"docs/results has {results:,} bytes"


def texts() -> Iterator[tuple[Path, list[str]]]:
    for path in committed():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            yield path, data.decode("utf-8", errors="replace").splitlines()


def word(*parts: str) -> str:
    """A forbidden word, kept in parts so that this file does not hold it."""
    return re.escape("".join(parts))


# Folders of one machine: absolute, so that `../work`, `b/root` and addresses do not count.
FOLDERS = "|".join(["work", "root", "opt/wheels", "opt/pypi", r"home/[a-z][\w-]*"])
FORBIDDEN = {
    "the host of a package registry": "|".join(
        [
            word("pypi", ".org"),
            word("pythonhosted", ".org"),
            word("registry", ".npmjs"),
            word("download.", "pytorch.org"),
            word("deb.", "debian.org"),
            word("anaconda", ".org"),
            word("crates", ".io"),
            word("proxy.", "golang.org"),
        ]
    ),
    "a folder of one machine": rf"(?<![\w.~/}}-])/(?:{FOLDERS})(?![\w-])",
    "notes that the reader does not have": "|".join(
        [word("shared/", "research"), word("shared/", "DESIGN"), word("shared/", "seeds")]
    ),
    "how the work was organised": "|".join(
        [word("issues ", "show"), word(".", "library/"), word("Co-Authored", "-By")]
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_committed_files_name_no(what: str):
    pattern = re.compile(FORBIDDEN[what], re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {what}: {match[0]!r}"
        for path, lines in texts()
        for number, line in enumerate(lines, 1)
        if (match := pattern.search(line))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("see /" + "work/main", True),
        ("'/" + "root'", True),
        ("/" + "home/someone/data", True),
        ("../work/main", False),
        ("https://example.com/work/a", False),
        ("a path/root of the tree", False),
    ],
)
def test_folders_of_one_machine_are_told_from_others(line: str, caught: bool):
    assert bool(re.search(FORBIDDEN["a folder of one machine"], line)) is caught


def unsafe_loads(source: str, name: str) -> list[str]:
    """Imports of pickle and its kin, and loads that would unpickle, with file and line."""
    tree = ast.parse(source, filename=name)
    pickles = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}
    found = [
        f"{name}:{line}: imports {module}; use safetensors, JSON or parquet"
        for line, module in imports(tree, ())
        if module.partition(".")[0] in pickles
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{name}:{node.lineno}: torch.load without weights_only=True")
        if called.rpartition(".")[2] in {"read_pickle", "to_pickle"}:
            found.append(f"{name}:{node.lineno}: {called} pickles")
        if given.get("allow_pickle") == "True":
            found.append(f"{name}:{node.lineno}: {called} with allow_pickle=True")
    return found


def test_nothing_is_pickled():
    found = [
        complaint
        for path in committed()
        if path.suffix == ".py"
        for complaint in unsafe_loads(path.read_text("utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n" + "\n".join(found)


def test_pickles_are_found():
    assert unsafe_loads("import pickle", "a.py") == [
        "a.py:1: imports pickle; use safetensors, JSON or parquet"
    ]
    assert len(unsafe_loads("torch.load(f)\ntorch.load(f, weights_only=False)", "a.py")) == 2
    assert unsafe_loads("torch.load(f, weights_only=True)", "a.py") == []


# The pages


def pages() -> list[tuple[Path, list[str]]]:
    return [(path, lines) for path, lines in texts() if path.suffix == ".md"]


def blocks(lines: list[str], language: str) -> Iterator[tuple[int, str]]:
    """`(first line, text)` of the fenced blocks in one language."""
    start, body = 0, []
    for number, line in enumerate(lines, 1):
        if start and line.strip() == "```":
            yield start, "\n".join(body)
            start, body = 0, []
        elif start:
            body.append(line)
        elif line.strip() == f"```{language}":
            start = number + 1


def test_python_in_the_pages_parses():
    found, seen = [], 0
    for path, lines in pages():
        for start, source in blocks(lines, "python"):
            seen += 1
            try:
                ast.parse(source)
            except SyntaxError as error:
                line = start + (error.lineno or 1) - 1
                found.append(f"{path.relative_to(ROOT)}:{line}: {error.msg}")
    assert not found, "\n" + "\n".join(found)
    assert seen, "no python block in any page, not even in README.md"


def test_links_between_pages_lead_somewhere():
    found = []
    for path, lines in pages():
        for number, line in enumerate(lines, 1):
            for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", line):
                link = (target[0] or target[1]).partition("#")[0]
                if not link or re.match(r"[a-z]+:", link):
                    continue
                if not (path.parent / link).exists():
                    found.append(f"{path.relative_to(ROOT)}:{number}: no such file: {link}")
    assert not found, "\n" + "\n".join(found)


def test_commands_in_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    found = [
        f"{path.relative_to(ROOT)}:{number}: `make {target}` is no target of the Makefile"
        for path, lines in pages()
        for number, line in enumerate(lines, 1)
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)(?=`| *$|  +#| [A-Z])", line)
        if target not in targets
    ]
    assert not found, "\n" + "\n".join(found)


# Versions


def normalised(requirement: str) -> str:
    """The distribution's name in `Jinja2==3.1.6; marker` as packaging compares names: `jinja2`."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pin = re.compile(
        r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*( *; *python_version *[<>=]+ *\"[0-9.]+\")?"
    )
    loose = [line for line in pins if not pin.fullmatch(line)]
    assert not loose, f"constraints.txt: not `name==version`, or a local version: {loose}"

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for extra in ("bench", "cluster", "dev", "llama", "serve", "tune"):
        wanted += project["optional-dependencies"][extra]
    missing = {normalised(w) for w in wanted} - {normalised(p) for p in pins} - {"trimtab"}
    assert not missing, f"constraints.txt: no version of {sorted(missing)}"


def test_one_version_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert f"{version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    init = PACKAGE / "__init__.py"
    written = (
        re.findall(r"__version__ = \"(.+)\"", init.read_text("utf-8")) if init.exists() else []
    )
    assert all(w == version for w in written), f"src/trimtab/__init__.py says {written}"


def test_hooks_fetch_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    assert {h["language"] for repo in config["repos"] for h in repo["hooks"]} == {"system"}


def test_every_line_of_the_security_policy_has_its_test():
    root = Path(__file__).resolve().parents[2]
    text = (root / "SECURITY.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(lines) > 15
    for line in lines:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", line)
        assert named or "put a proxy" in line, line
        for file, test in named:
            assert re.search(rf"def {test}\(", (root / file).read_text("utf-8")), test
