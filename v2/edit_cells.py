"""edit(notebook path, [(cell, old, new), ...]): each old text must stand exactly once in its cell."""
import nbformat
def edit(path, changes):
    nb = nbformat.read(path, 4)
    for i, old, new in changes:
        cell = nb.cells[i]
        assert cell.source.count(old) == 1, (i, cell.source.count(old), old)
        cell.source = cell.source.replace(old, new)
    nbformat.validate(nb)
    nbformat.write(nb, path)
