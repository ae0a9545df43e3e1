"""What is built of the project: its version."""

import importlib.metadata

import aioblk

from ..support.scripts import ROOT, run_script


def test_the_version_is_told_without_an_installation() -> None:
    done = run_script(
        f"""
        import sys
        sys.path[:] = [{str(ROOT)!r}, *(path for path in sys.path if "packages" not in path)]
        import aioblk
        print(aioblk.__version__, "importlib.metadata" in sys.modules)
        """
    )
    assert done.stdout.split() == [aioblk.__version__, "False"]


def test_builds_are_told_the_version_that_the_package_tells() -> None:
    assert importlib.metadata.version("aioblk") == aioblk.__version__
