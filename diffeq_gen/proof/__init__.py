"""Proof: how a claim about code is judged.

`rounding` bounds what the arithmetic of a traced computation may lose, operation by operation; `symbolic` reads the same
trace over sympy, with opaque alpha(t), sigma(t), and reduces left - right to zero.  Neither knows what a diffusion is.
"""

__all__: list[str] = []
