"""A pytest plugin (`-p seen`): what the asserts of tests compare is seen as in notebooks. Compiled tests must be
kept apart from pytest's own (PYTHONPYCACHEPREFIX)."""

import os

from _pytest.assertion import rewrite
from asserts import Asserts

plain = rewrite.rewrite_asserts


def rewrite_asserts(tree, source, module_path=None, config=None):
    plain(Asserts(os.path.relpath(module_path) if module_path else "").visit(tree), source, module_path, config)


rewrite.rewrite_asserts = rewrite_asserts
