"""Rules of the house that no reader should have to check: what imports what, how long things are, what is explained.

The lists of offenders name what broke a rule when the rule was made. They may only become shorter.
"""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mixofshow_lite"
PAPER = ("attention", "diffusion", "evaluation", "fusion", "lora", "prompts", "regions", "tuning")
LINES = 1600  # of the eight paper files together
FUNCTION, PAPER_FUNCTION = 60, 35  # lines of one function

# Functions over 60 lines, and how long they may be until somebody divides them.
LONG_FUNCTIONS = {}
# Private names of another module that are used: "file: name".
PRIVATE_NAMES = {
    "engine/layerwise.py: _attn_implementation",  # transformers
    "engine/lora.py: _register_custom_module",  # peft
    "files/warn.py: _getframe",  # sys: whose line a warning shows
}

REQUIRED_TAGS = """
Eq. 1 denoising loss | Eq. 2 weight fusion | Eq. 3 W = f(W0, dW_1, ..., dW_n)
3.1 z_t = sqrt(a_t) z + sqrt(1 - a_t) eps | 3.1 eps_theta(z_t, t, c) | 3.1 classifier-free guidance
3.1 c = psi(P*) | 3.1 V | 3.1 V+ (P+) | 3.1 W = W0 + BA
3.3.1 V_rand+ | 3.3.1 V_class+ | 3.3.1 V = V_rand+ V_class+ | 3.3.1 V_rand+ V_class+ in P*
3.3.1 ED-LoRA | 3.3.1 Phi_0 + alpha dPhi | 3.3.1 attention regularisation (official code)
3.3.2 X_i | 3.3.2 least squares W = argmin sum_i ~(W0 + dW_i) X_i - W X_i~_F^2
3.3.2 closed form (ours) | 3.3.2 ridge (ours) | 3.3.2 LBFGS
3.3.2 stage 1 (official code) | 3.3.2 stage 2 (official code) | 3.3.2 stage 3 (official code)
3.4 A = softmax(QK^T / sqrt(d)) | 3.4 h | 3.4 M_i | 3.4 w_i (official code) | 3.4 h[M_i] = h_i
3.4 h_i = softmax(Q(z_i) K(P_ri)^T / sqrt(d)) V(P_ri)
4.3 text-alignment | 4.3 image-alignment | 4.3 upper bound | 4.3 lower bound | 4.3 marks kept (ours)
"""


def equations():
    """The script that makes the README's table."""
    spec = importlib.util.spec_from_file_location("equations", ROOT / ".ci" / "equations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def functions(path: Path):
    """(name, node) of every function, methods as Class.method."""

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield name, child
                yield from visit(child, f"{name}.")
            else:
                yield from visit(child, prefix)

    return list(visit(tree_of(path), ""))


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, also inside functions: "fusion", "engine.lora", "" (the package)."""
    inside = list(path.relative_to(PACKAGE).with_suffix("").parts[:-1])  # the folder, as a package
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = inside[: len(inside) - node.level + 1]
            elif (node.module or "").split(".")[0] == "mixofshow_lite":
                base = []
            else:
                continue
            module = (node.module or "").removeprefix("mixofshow_lite").strip(".")
            start = ".".join([*base, *filter(None, [module])])
            for alias in node.names:
                full = f"{start}.{alias.name}".strip(".")
                is_module = (PACKAGE / (full.replace(".", "/") + ".py")).exists()
                is_package = (PACKAGE / full.replace(".", "/") / "__init__.py").exists()
                found.add(full if is_module or is_package else start)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mixofshow_lite":
                    found.add(alias.name.removeprefix("mixofshow_lite").strip("."))
    return found


def test_the_paper_files_import_nothing_else_of_the_package():
    for name in PAPER:
        assert imports(PACKAGE / f"{name}.py") <= set(PAPER), name
        text = (PACKAGE / f"{name}.py").read_text()
        assert "import_module" not in text and "__import__" not in text, name


def test_the_paper_files_have_no_cycle():
    graph = {name: imports(PACKAGE / f"{name}.py") for name in PAPER}
    while graph:
        leaves = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert leaves, f"These import each other in a circle: {sorted(graph)}"
        for name in leaves:
            del graph[name]


def test_imports_are_found_wherever_they_hide(tmp_path, monkeypatch):
    """The guard itself: relative, absolute and inside a function."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "engine").mkdir()
    for name in ("engine/__init__.py", "engine/lora.py", "fusion.py", "engine/x.py"):
        (tmp_path / name).write_text("")
    file = tmp_path / "engine" / "y.py"
    file.write_text(
        "import torch\nfrom . import lora\nfrom .x import name\nfrom ..fusion import average\n"
        "def f():\n    import mixofshow_lite.engine.lora\n    from mixofshow_lite import engine\n"
    )
    assert imports(file) == {"engine.lora", "engine.x", "fusion", "engine"}


def test_the_paper_files_fit_in_one_sitting():
    lines = {name: len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in PAPER}
    assert sum(lines.values()) <= LINES, lines
    assert max(lines.values()) <= 300, lines


def test_functions_are_short():
    too_long, finished = [], set(LONG_FUNCTIONS)
    for path in modules():
        name = str(path.relative_to(PACKAGE))
        limit = PAPER_FUNCTION if name.removesuffix(".py") in PAPER else FUNCTION
        for function, node in functions(path):
            key, length = f"{name}:{function}", node.end_lineno - node.lineno + 1
            if length > limit:
                finished.discard(key)
            if length > LONG_FUNCTIONS.get(key, limit):
                too_long.append(f"{key} has {length} lines")
    assert not too_long
    assert not finished, f"Short by now, take them off LONG_FUNCTIONS: {sorted(finished)}"


def test_float64_is_made_on_the_cpu():
    """An Apple GPU (MPS) has no float64: what is doubled there before it comes to the CPU is an error."""
    late = re.compile(r"(\.double\(\)|float64\))\s*\.(cpu|to)\(")
    found = [f"{p.relative_to(PACKAGE)}: {hit[0]}" for p in modules() for hit in late.finditer(p.read_text())]
    assert not found, f"write .cpu().double(): {found}"


def test_files_and_folders_get_their_names_in_one_place():
    """Writing all or nothing is files/writing.py's: a second way has faults of its own."""
    moves = re.compile(r"os\.(replace|rename)\(|shutil\.move\(|\.rename\(|with_suffix\([^)]*\)\.replace\(")
    found = {str(path.relative_to(PACKAGE)) for path in modules() if moves.search(path.read_text())}
    # Loading rewrites a file inside a folder that is not yet in its place.
    assert found == {"files/writing.py", "files/loading.py"}


def private_names(path: Path) -> set[str]:
    """Private names that a file takes from another module, of the package or of a library."""
    found = set()
    own = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)} & {"self", "cls"}
    defined = {node.name for node in ast.walk(tree_of(path)) if hasattr(node, "name")}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            of_itself = isinstance(node.value, ast.Name) and node.value.id in own
            names = [] if of_itself or node.attr in defined else [node.attr]
        else:
            continue
        found |= {name for name in names if name.startswith("_") and not name.startswith("__")}
    return found


def test_no_module_uses_private_names_of_another():
    found = set()
    for path in modules():
        found |= {f"{path.relative_to(PACKAGE)}: {name}" for name in private_names(path)}
    assert found <= PRIVATE_NAMES, sorted(found - PRIVATE_NAMES)
    assert found == PRIVATE_NAMES, f"Gone by now, take them off PRIVATE_NAMES: {sorted(PRIVATE_NAMES - found)}"


def test_every_equation_is_tagged_and_computed_a_second_way():
    tags = {tag for tag, *_ in equations().tags()}
    required = {tag.strip().replace("~", "||") for tag in re.split(r"[|\n]", REQUIRED_TAGS) if tag.strip()}
    assert required <= tags, required - tags
    docstrings = []
    for name, node in functions(ROOT / "tests" / "test_equations.py"):
        if name.startswith("test_"):
            docstrings.append((ast.get_docstring(node) or "").split("\n")[0])
    tested = {part for line in docstrings for part in line.split(":")[0].split(", 4.3 ")}  # one test has both bounds
    tested |= {f"4.3 {part}" for part in tested}
    assert not {tag for tag in tags if tag not in tested}, "no test in tests/test_equations.py begins with these tags"


def test_the_readme_s_table_is_up_to_date():
    text = (ROOT / "README.md").read_text()
    assert equations().updated(text) == text, "run: python .ci/equations.py --write"


def test_the_readme_s_table_begins_with_the_numbered_equations():
    made = equations().tables()
    formulas, fold = made.split("<details>")
    first = [line[2:7] for line in formulas.splitlines()[2:] if line.startswith("| ")]
    assert first[:3] == ["Eq. 1", "Eq. 2", "Eq. 3"] and not any(tag.startswith("Eq.") for tag in first[3:])
    order = [line.split("|")[1].split()[0] for line in fold.splitlines() if re.match(r"\| \d", line)]
    assert len(order) > 20 and order == sorted(order)
    tags = [tag for tag, *_ in equations().tags()]
    assert len(tags) == len(set(tags)), "one row for a name: which of two lines runs?"
    assert made.count("](mixofshow_lite/") == len(tags)


SHAPE = re.compile(r"\((?:[A-Za-z0-9_ *+/.]+,[^()]*)?\)")  # (B, T, C), (r, d_in), ()


def takes_tensors(node) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [a.annotation for a in arguments if a.annotation] + ([node.returns] if node.returns else [])
    return any("Tensor" in ast.unparse(annotation) for annotation in annotations)


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_files_explain_themselves(name):
    """Section in the first line, a table of symbols, docstrings everywhere, shapes wherever tensors go in or out."""
    tree = tree_of(PACKAGE / f"{name}.py")
    lines = ast.get_docstring(tree).splitlines()
    assert re.search(r"\(paper \d\.\d", lines[0]), "the first line names the section"
    assert any(line.split()[:2] == ["paper", "here"] for line in lines), "a table: paper, here, shape"
    overriding = {"LayerAttention.attend", "StoringAttention.attend", "RegionAttention.__call__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert ast.get_docstring(node), node.name
    for function, node in functions(PACKAGE / f"{name}.py"):
        parts = function.split(".")
        nested = len(parts) > 1 and parts[0][0].islower()
        if nested or function in overriding or parts[-1].startswith("__") or parts[0] == "Clip":
            continue
        docstring = ast.get_docstring(node)
        assert docstring, function
        if takes_tensors(node):
            assert SHAPE.search(docstring), f"{function} takes or gives tensors: its docstring has no shape"
        if any(isinstance(child, ast.Raise) for child in ast.walk(node)):
            assert re.search(r"[Rr]aises? |Error", docstring), f"{function} raises: its docstring does not say what"


@pytest.mark.parametrize("name", PAPER)
def test_comments_say_why(name):
    """At least a tenth of the paper files' lines have a comment."""
    lines = (PACKAGE / f"{name}.py").read_text().splitlines()
    commented = [line for line in lines if "# " in line]
    assert len(commented) >= 0.1 * len(lines)
