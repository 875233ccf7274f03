"""docs/cuda.md names every function that does something on CUDA only, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class _Finder(ast.NodeVisitor):
    """Collects the functions that name CUDA in their code; annotations do not count."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._inside: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node.name, node.body)

    def _enter(self, name: str, body: list[ast.stmt]) -> None:
        self._inside.append(name)
        for statement in body:
            self.visit(statement)
        self._inside.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if node.value in ("cuda", "cuda:", "nccl"):
            self._find()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in ("cuda", "is_cuda"):
            self._find()
        self.generic_visit(node)

    def _find(self) -> None:
        if self._inside:  # outside there are only names of types
            self.found.add(".".join(self._inside))


def find_in_code() -> set[tuple[str, str]]:
    """Return (path, function) of everything that names CUDA."""
    found = set()
    for folder, base in ((ROOT / "quickdraw_dist", ROOT / "quickdraw_dist"), (ROOT / "jobs", ROOT)):
        for path in folder.rglob("*.py"):
            finder = _Finder()
            finder.visit(ast.parse(path.read_text()))
            found |= {(path.relative_to(base).as_posix(), name) for name in finder.found}
    return found


def test_the_table_has_every_branch() -> None:
    """A branch that nobody wrote down is one that nobody tries when a GPU is at hand."""
    table = (ROOT / "docs" / "cuda.md").read_text()
    rows = re.findall(r"^\| `([\w/]+\.py)` `([\w.]+)` \|", table, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == find_in_code()
