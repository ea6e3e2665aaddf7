"""Elementary functions that Triton's own are too inexact for, or that its interpreter lacks."""

import triton
import triton.language as tl


@triton.jit
def _series(x):
    """(exp(x) - 1 - x) / x^2 for |x| < 0.5, to float32's precision."""
    s = x * (1.0 / 40320) + 1.0 / 5040
    s = s * x + 1.0 / 720
    s = s * x + 1.0 / 120
    s = s * x + 1.0 / 24
    s = s * x + 1.0 / 6
    return s * x + 0.5


@triton.jit
def expm1(x):
    """exp(x) - 1: near 0 by its series, where the difference would cancel."""
    return tl.where(tl.abs(x) < 0.5, x * x * _series(x) + x, tl.exp(x) - 1.0)


@triton.jit
def exp_above_line(x):
    """exp(x) - 1 - x, which is never negative."""
    return tl.where(tl.abs(x) < 0.5, x * x * _series(x), tl.exp(x) - 1.0 - x)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0: near 0 by the series of the inverse hyperbolic tangent."""
    s = x / (2.0 + x)
    square = s * s
    series = square * (1.0 / 9) + 1.0 / 7
    series = series * square + 1.0 / 5
    series = series * square + 1.0 / 3
    return tl.where(x < 0.5, 2.0 * s * (series * square + 1.0), tl.log(1.0 + x))


@triton.jit
def tanh(x):
    """By expm1, so that small arguments keep their relative precision."""
    shrunk = expm1(-2.0 * tl.abs(x))
    size = -shrunk / (2.0 + shrunk)
    return tl.where(x < 0, -size, size)
