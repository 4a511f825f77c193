"""Imports go downward only, and the written layout is the real one.

`python tests/layering_test.py [DIR]` prints how many import floors the package in a directory has.
"""

import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]

TRAINING = 3  # the lowest floor that reads a config


def layout():
    """Returns the floor of each package or module, as CONTRIBUTING's layout has it."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Layout")[2].partition("##")[0]
    rows = re.findall(r"^\| (\d) \| (`[^|]+`) \|", section, re.M)
    return {name: int(number) for number, names in rows for name in re.findall(r"`(\w+)`", names)}


FLOOR = layout()
COMMAND = max(FLOOR.values())

MAX_LINES = 500
MAX_PARAMETERS = 12


def modules(root):
    """Returns the path of each module by its dotted name, without those that start all commands."""
    found = {}
    for path in sorted((root / "mch_jax").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found["mch_jax"]
    found.pop("mch_jax.__main__", None)  # starts the commands by their names
    return found


def imports(name, path, known):
    """Yields (line, imported module) for each import of a module, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [x if x in known else node.module for x in inside]
        else:
            continue
        for target in targets:
            if target != name:
                yield node.lineno, target


def arrows(root):
    """Returns (importing module, line, imported module) for every import within the package."""
    known = modules(root)
    return [
        (name, line, target)
        for name, path in known.items()
        for line, target in imports(name, path, known)
        if target in known
    ]


def unit(name):
    """Returns the package or module directly inside `mch_jax` that a module belongs to."""
    return name.split(".")[1]


def floor(name):
    return COMMAND if name.endswith(".__main__") else FLOOR[unit(name)]


def cycles(edges):
    """Returns the groups of nodes that import each other, by repeated removal of the leaves."""
    graph = {}
    for source, target in edges:
        graph.setdefault(source, set()).add(target)
        graph.setdefault(target, set())
    reach = {}
    for node in graph:
        seen, stack = set(), [node]
        while stack:
            new = graph[stack.pop()] - seen
            seen |= new
            stack += new
        reach[node] = seen
    return {frozenset(x for x in reach[n] if n in reach[x]) for n in graph if n in reach[n]}


def num_floors(edges):
    """Returns the number of nodes on the longest path; a cycle counts as one node."""
    group = {node: nodes for nodes in cycles(edges) for node in nodes}
    below = {}
    for source, target in edges:
        source, target = group.get(source, source), group.get(target, target)
        if source != target:
            below.setdefault(source, set()).add(target)

    def height(node):
        return 1 + max((height(x) for x in below.get(node, ())), default=0)

    return max(map(height, below), default=1)


def where(name, line, target, root=ROOT):
    path = modules(root)[name].relative_to(root)
    return f"{path}:{line}: {name} (floor {floor(name)}) imports {target} (floor {floor(target)})"


def upward(root):
    """Returns the imports that go upward and those of a command."""
    return [
        (name, line, target)
        for name, line, target in arrows(root)
        if floor(target) > floor(name) or floor(target) == COMMAND
    ]


def test_the_written_layout_is_the_real_one():
    assert set(FLOOR) == {unit(name) for name in modules(ROOT)}


def test_imports_go_downward():
    wrong = [where(*arrow) for arrow in upward(ROOT)]
    assert not wrong, "\n".join(["imports that go upward:", *wrong])


def test_an_import_that_goes_upward_is_named(tmp_path):
    (tmp_path / "mch_jax" / "files").mkdir(parents=True)
    for name in ("__init__", "files/__init__", "main"):
        (tmp_path / "mch_jax" / f"{name}.py").touch()
    (tmp_path / "mch_jax" / "codes.py").write_text(
        "import numpy\n\ndef load():\n    from mch_jax import files, main\n"
    )
    assert [where(*arrow, tmp_path) for arrow in upward(tmp_path)] == [
        "mch_jax/codes.py:4: mch_jax.codes (floor 0) imports mch_jax.files (floor 1)",
        "mch_jax/codes.py:4: mch_jax.codes (floor 0) imports mch_jax.main (floor 6)",
    ]


def test_no_cycles():
    edges = [(name, target) for name, _, target in arrows(ROOT)]
    assert not cycles(edges)
    assert not cycles((unit(a), unit(b)) for a, b in edges if unit(a) != unit(b))


def test_nothing_below_training_reads_a_config():
    known = {*modules(ROOT), "configs", "ml_collections"}
    for name, path in modules(ROOT).items():
        if floor(name) < TRAINING:
            for line, target in imports(name, path, known):
                outside = target.split(".")[0]
                assert outside not in ("configs", "ml_collections"), f"{path}:{line}: {target}"


def test_the_index_and_the_kernels_are_used_through_their_packages():
    allowed = {"index": {"index"}, "kernels": {"index", "kernels", "histograms", "metrics"}}
    wrong = [
        where(name, line, target)
        for name, line, target in arrows(ROOT)
        if target.count(".") > 1 and unit(name) not in allowed.get(unit(target), {unit(name)})
    ]
    assert not wrong, "\n".join(["imports of internal modules:", *wrong])


def sources():
    """Returns every Python file of the project."""
    return [
        path
        for folder in ("mch_jax", "configs", "bench", "launch", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_files_are_short():
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources()}
    long = {path: count for path, count in lines.items() if count > MAX_LINES}
    assert not long


def test_functions_have_few_parameters():
    wide = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            own = node.args
            count = len([*own.posonlyargs, *own.args, *own.kwonlyargs])
            if count > MAX_PARAMETERS:
                wide[f"{path.relative_to(ROOT)}:{node.name}"] = count
    assert not wide


if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1] if sys.argv[1:] else ROOT)
    edges = [(name, target) for name, _, target in arrows(root)]
    units = {(unit(a), unit(b)) for a, b in edges if unit(a) != unit(b)}
    count = len(modules(root)), len({unit(name) for name in modules(root)})
    print(f"{count[0]} modules on {num_floors(edges)} import floors")  # noqa: T201
    print(f"{count[1]} packages and single modules on {num_floors(units)}")  # noqa: T201
