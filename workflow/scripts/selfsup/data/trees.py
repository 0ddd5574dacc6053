"""Sources whose pictures lie in a tree of class folders: <split>/<class>/<picture>, in a folder, a tar or a zip."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from selfsup.data.archives import is_zip
from selfsup.data.listing import Listing, Tree, read_tree
from selfsup.data.source import Source, unfinished_in
from selfsup.data.splits import Wanted


class TreeSource(Source):
    """A source of such a tree. wanted: what its folders are."""

    def wanted(self) -> Wanted:
        """Return what is known of the source's folders."""
        return Wanted(("test",))

    def listing(self, pool: Executor, folder: Path, seen: Callable[[int], None]) -> Listing:
        return self.tree(folder, seen).listing()

    def tree(self, folder: Path, seen: Callable[[int], None]) -> Tree:
        """List the tree. folder: of the store."""
        from selfsup.data.tar_listing import plain_tar, read_tar_tree
        from selfsup.data.zip_listing import read_zip_tree

        path = self.path
        if path.is_dir():
            return read_tree(path, self.wanted(), seen)
        if is_zip(path):
            return read_zip_tree(path, self.wanted(), seen)
        return read_tar_tree(plain_tar(path, unfinished_in(folder)), self.wanted(), seen)
