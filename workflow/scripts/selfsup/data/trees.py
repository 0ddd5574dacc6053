"""Sources whose pictures lie in a tree of class folders: <split>/<class>/<picture>, in a folder, a tar or a zip."""

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from selfsup.data.archives import is_zip
from selfsup.data.listing import Listing, Tree, read_tree
from selfsup.data.source import Source, unfinished_in
from selfsup.data.splits import Wanted

logger = logging.getLogger(__name__)


class TreeSource(Source):
    """A source of such a tree. wanted: what its folders are."""

    def wanted(self) -> Wanted:
        """Return what is known of the source's folders."""
        return Wanted(("test",))

    def listing(self, pool: Executor, folder: Path, seen: Callable[[int], None]) -> Listing:
        tree = self.tree(folder, seen)
        _say(tree)
        return tree.listing()

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


def _say(tree: Tree) -> None:
    """Tell what was chosen of the source's folders, where it is not what their names say."""
    layout = tree.layout
    if layout.test not in (None, tree.wanted.tests[0]):
        logger.info("%s: the test set is %s/", tree.where, layout.test)
    if not layout.labels and layout.train:
        logger.info(
            "%s: has a test set beside %s/, so that %s/ alone is packed", tree.where, layout.train, layout.train
        )
