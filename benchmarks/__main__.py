"""`python -m benchmarks`: see to the packages that the suite needs, then hand over to the command line."""

import importlib.util
import subprocess
import sys

from benchmarks.paths import ROOT

if not all(importlib.util.find_spec(package) for package in ("matplotlib", "rich")):
    print("bench: installing rich and matplotlib", file=sys.stderr)
    requirements = ROOT / "benchmarks" / "requirements.txt"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)

from benchmarks.command_line import main

sys.exit(main())
