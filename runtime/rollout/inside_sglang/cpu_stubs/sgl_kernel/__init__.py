"""Replaces SGLang's compiled kernels in engine processes on a machine without a GPU.

The real package cannot be imported there, because it needs libcuda. This one comes earlier on the PYTHONPATH, only in
these processes. Every name in it and in any submodule can be imported, but raises when it is called, so SGLang uses its
native torch code.
"""

import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "0.0.0+cpu"
__path__ = []


class _Missing:
    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> "_Missing":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.name}.{name}")

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{self.name} is a CUDA kernel and this engine runs on CPUs")


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.startswith("sgl_kernel."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def __getattr__(name: str) -> _Missing:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Missing(f"sgl_kernel.{name}")


sys.meta_path.insert(0, _Finder())
