"""Triton's interpreter without what it does again and again: nearly half of its time (3.7.1, measured).

It looks for what to replace in `triton.language` at every call of a device function, and has no operation of NumPy for
the exclusive or that sorting is made of. What it computes stays the same.
"""

import inspect
from functools import cache

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def hasten(patch):
    """`patch` is pytest's MonkeyPatch."""
    apply = interpreter.ReduceOps.apply_impl

    @cache
    def builtins_of(package):
        return [(name, member) for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def patch_builtin(package, *context):
        for name, member in builtins_of(package):
            if getattr(package, name) is member:  # not replaced yet
                interpreter._patch_attr(package, name, member, *context)

    def apply_impl(self, values):
        if self.combine_fn != tl.standard._xor_combine or self.axis is None:
            return apply(self, values)
        (value,) = values
        found = np.bitwise_xor.reduce(value.handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(found, value.dtype)

    patch.setattr(interpreter, "_patch_builtin", patch_builtin)
    patch.setattr(interpreter.ReduceOps, "apply_impl", apply_impl)
