"""What a test changes in the Python processes that it starts, the engine's among them."""

from __future__ import annotations

from pathlib import Path

#: Loaded by every Python process that has its folder on PYTHONPATH. What follows it says what is done BEFORE a module
#: is executed, and AFTER that, with the module.
SITECUSTOMIZE = """
import importlib.machinery, sys

BEFORE, AFTER = {}, {}

class Patched(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in BEFORE and name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            if name in BEFORE:
                BEFORE[name]()
            load(module)
            if name in AFTER:
                AFTER[name](module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Patched)
"""


def patched_imports(folder: Path, *code: str) -> dict[str, str]:
    """The environment of processes that run this code as they start. ``folder`` is made for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text("\n".join((SITECUSTOMIZE, *code)))
    return {"PYTHONPATH": str(folder)}


#: A stand-in engine that takes so long to load, that one can look on.
SLOW_LOAD = """
import time

def load_slowly(module):
    def load(self, settings, init=module.StandInEngine.__init__):
        time.sleep(4)
        init(self, settings)
    module.StandInEngine.__init__ = load

AFTER["workers.standin"] = load_slowly
"""
