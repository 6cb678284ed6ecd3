"""What a sampler costs beside a `lax.scan` written by hand, for the same network evaluations.

    python -m benchmarks.samplers [--pairs 40] [--steps 50]

By hand means: the coefficients of every step in tables made beforehand, in float64 numpy, and a body that evaluates the
network and does two or three multiplications.  `samplers.sample` works its coefficients out in the scan, from the schedule,
and checks its times.  Networks: a U-Net on 8 x 8 and on 28 x 28 pictures, and a multilayer perceptron.  The first rows have
no network: their difference over the number of steps is what a step costs, and the target is not meant for them.
"""

import argparse
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pairs import compare, head, line
from diffeq_gen import clocks, samplers, schedules
from diffeq_gen.nets import MLP, UNet
from diffeq_gen.types import Denoiser, Key, Sample, Time

TARGET = 1.02
NETWORKS = {
    "no network, 16 x 8 x 8": (None, (16, 8, 8, 1)),
    "U-Net 8 x 8, batch 16": (UNet(channels=(32, 64)), (16, 8, 8, 1)),
    "U-Net 28 x 28, batch 2": (UNet(channels=(32, 64, 64)), (2, 28, 28, 1)),
    "MLP width 512, batch 256": (MLP(width=512, depth=4, ndim=1), (256, 64)),
}
METHODS = {"ddim": samplers.ddim, "ddpm": samplers.ddpm, "euler": samplers.euler}


def network(net: UNet | MLP | None, shape: tuple[int, ...]) -> Denoiser:
    """A denoiser with the network's cost: it hears cos(pi t), so that neither side owes it a schedule."""
    if net is None:
        return lambda z, t: z * jnp.cos(math.pi * t)
    z = jnp.zeros(shape)
    params = net.init(jax.random.key(0), z, jnp.zeros(()))
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # its last layer begins at zero

    def denoise(z: Sample, t: Time) -> Sample:
        return net.apply(params, z, 10 * jnp.cos(math.pi * t))

    return denoise


def rows(method: str, times: np.ndarray) -> np.ndarray:
    """(c_z, c_x, c_eps) of every step under alpha = cos(pi t/2), sigma = sin(pi t/2): z_s = c_z z_t + c_x x0_hat + c_eps eps."""
    t, s = times[:-1].astype(np.float64), times[1:].astype(np.float64)
    a, b, a_s, b_s = (f(math.pi / 2 * x) for x in (t, s) for f in (np.cos, np.sin))
    if method == "ddim":
        return np.stack([b_s / b, a_s - a * b_s / b, 0 * a])
    if method == "ddpm":
        kept = (a / a_s) ** 2
        large = b**2 - kept * b_s**2
        return np.stack([a / a_s * b_s**2 / b**2, a_s * large / b**2, np.sqrt(large) * b_s / b])
    slope, slope_b = -math.pi / 2 * b, math.pi / 2 * a
    return np.stack([1 + (s - t) * slope_b / b, (s - t) * (slope - a * slope_b / b), 0 * a])


def by_hand(method: str, denoise: Denoiser, times: np.ndarray) -> Callable[[Key, Sample], Sample]:
    """The scan that a person would write for one method, one schedule and one grid."""
    tables = jnp.asarray(np.concatenate([times[None, :-1], rows(method, times)]).T, jnp.float32)
    noisy = method == "ddpm"

    @jax.jit
    def run(key: Key, z: Sample) -> Sample:
        def body(z: Sample, inputs: tuple[Key, jax.Array]) -> tuple[Sample, None]:
            key, (t, c_z, c_x, c_eps) = inputs
            z = c_z * z + c_x * denoise(z, t)
            return z + c_eps * jax.random.normal(key, z.shape, z.dtype) if noisy else z, None

        keys = jax.random.split(key, len(times) - 1)
        return jax.lax.scan(body, z, (keys, tables))[0]

    return run


def main() -> None:
    """Every method on every network; also how far the two results are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    key, schedule = jax.random.key(1), schedules.Cosine()
    times = jnp.clip(clocks.uniform(options.steps), 1e-3, 1 - 1e-3)
    head(f"samplers, {options.steps} steps", ("sample", "by hand"), TARGET)
    apart = 0.0
    for name, (net, shape) in NETWORKS.items():
        denoise = network(net, shape)
        z = jax.random.normal(key, shape)
        for method, build in METHODS.items():
            sampler, scan = build(denoise, schedule), by_hand(method, denoise, np.asarray(times))
            ours, theirs = (lambda s=sampler, z=z: samplers.sample(key, s, z, times)), (lambda f=scan, z=z: f(key, z))
            apart = max(apart, float(jnp.max(jnp.abs(ours() - theirs())) / jnp.max(jnp.abs(theirs()))))
            line(f"{method:6} {name}", compare(ours, theirs, pairs=options.pairs))
    print(f"  results apart by at most {apart:.1e} of their size")


if __name__ == "__main__":
    main()
