"""Adapters: any solver of diffrax as a sampler, of the probability flow and of the reverse SDE, along any coordinate.

    u: 1 at t, 0 at s,      k = k_s + u (k_t - k_s),      (alpha, sigma) = (a, b)(k),      y = z/m,      x0_hat = denoise(m y, t(k))
    ode     dy = velocity du                        `equations.probability_flow` of this schedule and denoiser
    sde     dy = drift du + diffusion dw_bar        `equations.reverse_sde` of them

A piece of a coordinate's curve is itself a schedule, whose time u falls from 1 to 0 over a step: nothing else need be adapted.
What diffrax calls time is -u, which rises from -1 to 0 in each step of the grid, wherever that step lies.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import time_at
from diffeq_gen.coordinates import STRAIGHT, Coordinate, time_on
from diffeq_gen.equations import probability_flow, reverse_sde
from diffeq_gen.likelihood import Rate, Solve, State
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Point, Sample, Sampler, Schedule, Time, require

try:
    import diffrax
    import equinox
    import lineax
except ModuleNotFoundError as missing:
    raise ImportError("diffeq_gen.adapters needs diffrax: pip install 'diffeq-gen[solvers]'") from missing

__all__ = ["ode", "sde", "solve"]

CONSTANT, CHECKPOINTED = diffrax.ConstantStepSize(), diffrax.RecursiveCheckpointAdjoint()


def ode(
    denoise: Denoiser, schedule: Schedule, solver: diffrax.AbstractSolver, *, coordinate: Coordinate | None = STRAIGHT,
    steps: int = 1, controller: diffrax.AbstractStepSizeController = CONSTANT,
    adjoint: diffrax.AbstractAdjoint = CHECKPOINTED, max_steps: int = 4096, log_snr_max: float | None = None,
) -> Sampler:  # fmt: skip
    """d(z/m)/dk = a'(k) x0_hat + b'(k) eps_hat by any solver of diffrax for one equation, in t where coordinate is None.  Kidger 2021.

    Without a controller each step of the grid is `steps` equal ones in k, with derivatives forwards and backwards.  With
    `diffrax.PIDController(rtol=..., atol=...)`, say, it is as many as that asks for, with the derivatives of `adjoint`: by default
    backwards, forwards by `diffrax.ForwardMode()`.  Solver and controller begin anew at each step of the grid: the grid (t, s) is
    one solve from t to s.  A stage inside a step asks for the inverse clock, as in `samplers.runge_kutta`.

    At sigma_s = 0 there is no eps_hat: a step to it ends at log-SNR `log_snr_max` and takes alpha_s x0_hat there, one evaluation more.  By
    default that is where sigma/alpha = r^(1/3), r the rounding of z: eps_hat is uncertain by r^(2/3) there, and the end no worse
    for data of scale one.
    z is nan where `max_steps` do not reach s, where an implicit solver does not converge, and where k is infinite at t or s
    (alpha_t = 0 along NOISE and LOG_SNR).
    Raises: ValueError where the solver takes noise or several terms, an implicit one has neither controller nor tolerances, an
    option is out of its range, adjoint is a `diffrax.BacksolveAdjoint` (which is blind to what `denoise` holds), or s is later
    than t; where z is nan, if that is known, as it is outside `jit`.  TypeError where the solver is none of diffrax.
    Theorems: one-step-keeps-the-marginals, a-run-is-of-second-order, a-point-keeps-its-law.
    """
    constant = _require_ode(solver, controller, adjoint, steps, max_steps)
    require(lambda steps: constant or steps == 1, "steps are equal ones: a controller chooses its own", steps=steps)

    def solve(noise: Sample, piece: _Piece, y: Sample) -> tuple[Sample, jax.Array]:
        velocity = probability_flow(piece.denoise, piece.schedule)
        terms = diffrax.ODETerm(lambda time, y, args: -velocity(y, -time))
        if constant:
            return _in_equal_steps(jnp.zeros((steps, 0), y.dtype), solver, lambda noise: terms, y)
        first, last = jnp.asarray(-1, y.dtype), jnp.asarray(0, y.dtype)
        solution = diffrax.diffeqsolve(
            terms, solver, first, last, None, y,
            stepsize_controller=controller, adjoint=adjoint, max_steps=max_steps, throw=False,
        )  # fmt: skip
        return solution.ys[0], solution.result == diffrax.RESULTS.successful

    return _sampler(denoise, schedule, coordinate, solve, log_snr_max, noises=0)


def sde(
    denoise: Denoiser, schedule: Schedule, solver: diffrax.AbstractSolver, *,
    eta: float | Callable[[Time], jax.Array] = 1.0, coordinate: Coordinate | None = STRAIGHT, steps: int = 1,
    log_snr_max: float | None = None,
) -> Sampler:  # fmt: skip
    """d(z/m) = drift dk + eta b |d lambda/dk|^(1/2) dw_bar by any solver of diffrax for Ito or Stratonovich equations.

    The noise does not depend on z, so that the two equations are one, of which Milstein's rule is Euler's.  Each step of the grid
    is `steps` equal ones in k, and each of these has rows of `noise` to itself: one is the increment W of variance h, and where
    the solver asks for areas two more are H, of variance h/12, and K, of variance h/720, all independent.  Foster, Lyons &
    Oberhauser 2020.  That is their exact law, so that no path need be kept.  Steps of chosen length would ask for what lies
    between, and are not offered.

    The end at sigma_s = 0 is that of `ode`.  z is nan from alpha_t = 0, where the noise is infinite.
    Raises: ValueError where the solver is for no such equation or a `diffrax.HalfSolver`, a number eta is negative, steps < 1,
    or s is later than t; where z is nan, if that is known.  TypeError where the solver is none of diffrax.
    Theorems: one-step-keeps-the-marginals, a-run-tends-to-the-marginals, reverse-family.
    """
    _require_solver(solver, steps)
    stochastic = isinstance(solver, diffrax.AbstractItoSolver | diffrax.AbstractStratonovichSolver)
    other = isinstance(solver, diffrax.AbstractWrappedSolver | diffrax.AbstractFosterLangevinSRK)
    require(
        lambda solver: stochastic and not other,
        "the solver must be for an Ito or a Stratonovich equation",
        solver=solver,
    )
    if not callable(eta):
        require(lambda eta: eta >= 0, "eta must not be negative", eta=eta)
    needed = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    areas = diffrax.AbstractSpaceTimeLevyArea, diffrax.AbstractSpaceTimeTimeLevyArea
    rows = 1 + sum(issubclass(needed, area) for area in areas)

    def solve(noise: Sample, piece: _Piece, y: Sample) -> tuple[Sample, jax.Array]:
        level = (lambda u: eta(piece.time(u))) if callable(eta) else eta
        drift, diffusion = reverse_sde(piece.denoise, piece.schedule, eta=level)
        falling = diffrax.ODETerm(lambda time, y, args: -drift(y, -time))

        def terms(noise: Sample) -> diffrax.AbstractTerm:
            spread = lambda time, y, args: lineax.DiagonalLinearOperator(jnp.full_like(y, diffusion(-time)))  # noqa: E731
            return diffrax.MultiTerm(falling, diffrax.ControlTerm(spread, _Increments(noise)))

        return _in_equal_steps(noise.reshape(steps, rows, *y.shape), solver, terms, y)

    return _sampler(denoise, schedule, coordinate, solve, log_snr_max, noises=steps * rows)


def solve(
    solver: diffrax.AbstractSolver, *, steps: int | None = None, controller: diffrax.AbstractStepSizeController = CONSTANT,
    adjoint: diffrax.AbstractAdjoint = CHECKPOINTED, max_steps: int = 4096,
) -> Solve:  # fmt: skip
    """The `solve` of `likelihood.encode` and `decode` by a solver of diffrax for one equation, in equal `steps`, 32 if left out, or
    by a controller.

    The state is nan where `max_steps` do not reach the end, or an implicit solver does not converge.
    Raises: ValueError where the solver takes noise or several terms, an implicit one has neither controller nor tolerances, an
    option is out of its range, steps are given beside a controller, or adjoint is a `diffrax.BacksolveAdjoint`; where the state is
    nan, if that is known.  TypeError where the solver is none of diffrax.
    Theorems: instantaneous-change-of-variables.
    """
    equal = 32 if steps is None else steps
    constant = _require_ode(solver, controller, adjoint, equal, max_steps)
    require(lambda steps: constant or steps is None, "steps are equal ones: a controller chooses its own", steps=steps)

    def solved(rate: Rate, state: State, start: jax.Array, end: jax.Array) -> State:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda theta, state, args: rate(theta, state)), solver, start, end,
            (end - start) / equal if constant else None, state, stepsize_controller=controller, adjoint=adjoint,
            max_steps=equal + 1 if constant else max_steps, throw=False,
        )  # fmt: skip
        reached = solution.result == diffrax.RESULTS.successful
        require(
            lambda reached, start, end: reached,
            "the solver did not reach the end",
            reached=reached,
            start=start,
            end=end,
        )
        return jax.tree.map(lambda leaf: jnp.where(reached, leaf[0], jnp.nan), solution.ys)

    return solved


class _Increments(diffrax.AbstractPath):
    """(W, H, K) over one step, as far as there are rows of noise."""

    noise: jax.Array
    t0 = -1.0
    t1 = 0.0

    def evaluate(self, t0: Time, t1: Time | None = None, left: bool = True, use_levy: bool = False) -> object:
        parts = [jnp.sqrt((t1 - t0) / share) * row for share, row in zip((1, 12, 720), self.noise, strict=False)]
        kinds = diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea
        return kinds[len(parts) - 1](t1 - t0, *parts) if use_levy else parts[0]


class _Piece(NamedTuple):
    """The curve from t to s: a schedule and a denoiser in u, u -> t, m at both ends, and whether k is finite there."""

    schedule: Schedule
    denoise: Denoiser
    time: Callable[[Time], Time]
    first: jax.Array
    last: jax.Array
    finite: jax.Array


def _piece(denoise: Denoiser, schedule: Schedule, coordinate: Coordinate | None, p: Point, q: Point) -> _Piece:
    if coordinate is None:
        unit, curve = lambda alpha, sigma: jnp.ones_like(alpha), schedule
        k, k_s, elsewhere = p.t, q.t, p.t
    else:
        unit, curve, one = coordinate.unit, coordinate.curve, jnp.ones_like(p.alpha)
        k, k_s, elsewhere = (coordinate.clock(*pair) for pair in ((p.alpha, p.sigma), (q.alpha, q.sigma), (one, one)))
    finite = jnp.isfinite(k) & jnp.isfinite(k_s)
    k, k_s = jnp.where(finite, k, elsewhere), jnp.where(finite, k_s, elsewhere)  # what is seen elsewhere is not used

    def time(u: Time) -> Time:
        """t and s themselves at the ends, where the inverse clock may have no value."""
        inside = (u > 0) & (u < 1)
        r = k_s + jnp.where(inside, u, 0.5) * (k - k_s)
        if coordinate is not None:
            r = jnp.clip(time_on(schedule, coordinate, r), q.t, p.t)
        return jnp.where(inside, r, jnp.where(u > 0, p.t, q.t))

    def seen(y: Sample, u: Time) -> Sample:
        r = time(u)
        return denoise(unit(*schedule(r)) * y, r)

    along = lambda u: curve(k_s + u * (k - k_s))  # noqa: E731
    return _Piece(along, seen, time, unit(p.alpha, p.sigma), unit(q.alpha, q.sigma), finite)


def _sampler(
    denoise: Denoiser, schedule: Schedule, coordinate: Coordinate | None,
    solve: Callable[[Sample, _Piece, Sample], tuple[Sample, jax.Array]], log_snr_max: float | None, *, noises: int,
) -> Sampler:  # fmt: skip
    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        require(lambda t, s: t >= s, "s must not be later than t", t=t, s=s)
        p, q = at(schedule, t), at(schedule, s)
        clean = -2 / 3 * jnp.log(jnp.finfo(z.dtype).eps) if log_snr_max is None else log_snr_max
        near = jnp.clip(time_at(schedule, jnp.asarray(clean, z.dtype)), q.t, p.t)
        r = at(schedule, jnp.where(q.sigma > 0, q.t, near))
        piece = _piece(denoise, schedule, coordinate, p, r)
        possible = piece.finite & (p.sigma > 0) & ((p.alpha > 0) | (noises == 0))
        require(lambda possible, t, s: possible, "k must be finite at both ends of a step, and log-SNR where it begins with noise",
                possible=possible, t=t, s=s)  # fmt: skip
        y, reached = solve(noise, piece, z / piece.first)
        require(lambda reached, t, s: reached, "the solver did not reach s", reached=reached, t=t, s=s)
        moved = jnp.where(possible & reached, piece.last * y, jnp.nan)
        ended = lambda: q.alpha * denoise(moved, r.t)  # noqa: E731
        return jax.lax.cond(q.sigma > 0, lambda: moved, ended), memory

    return Sampler(lambda z: (), step, noises)


def _in_equal_steps(
    noise: Sample, solver: diffrax.AbstractSolver, terms: Callable[[Sample], diffrax.AbstractTerm], y: Sample
) -> tuple[Sample, jax.Array]:
    """(y, whether the solver says so) at u = 0, of as many equal steps from u = 1 as there is noise for."""
    if getattr(solver, "scan_kind", "") is None:  # a loop over stages that has derivatives both ways
        kind = "lax" if isinstance(solver, diffrax.AbstractSRK) else "bounded"
        solver = equinox.tree_at(lambda solver: solver.scan_kind, solver, kind, is_leaf=lambda leaf: leaf is None)
    ends = -jnp.arange(len(noise), -1, -1, dtype=y.dtype) / len(noise)

    def body(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        (y, state, reached), (noise, first, last) = carry, inputs
        moved, _, _, state, result = solver.step(terms(noise), first, last, y, None, state, jnp.zeros((), bool))
        return (moved.astype(y.dtype), state, reached & (result == diffrax.RESULTS.successful)), None

    state = solver.init(terms(noise[0]), ends[0], ends[1], y, None)
    (y, _, reached), _ = jax.lax.scan(body, (y, state, jnp.ones((), bool)), (noise, ends[:-1], ends[1:]))
    return y, reached


def _require_ode(
    solver: diffrax.AbstractSolver, controller: diffrax.AbstractStepSizeController, adjoint: diffrax.AbstractAdjoint,
    steps: int, max_steps: int,
) -> bool:  # fmt: skip
    """Whether the steps are equal ones, of what solves an ODE of one term."""
    _require_solver(solver, steps)
    single, constant = solver.term_structure is diffrax.AbstractTerm, isinstance(controller, diffrax.ConstantStepSize)
    require(lambda solver: single, "the solver must be for an ODE of one term", solver=solver)
    require(lambda max_steps: max_steps >= 1, "max_steps must be at least 1", max_steps=max_steps)
    blind = isinstance(adjoint, diffrax.BacksolveAdjoint)
    require(lambda adjoint: not blind, "adjoint must see what denoise holds", adjoint=adjoint)
    tolerant = isinstance(getattr(getattr(solver, "root_finder", None), "rtol", 0.0), float | jax.Array)
    require(lambda solver: tolerant or not constant, "an implicit solver needs a controller, or a root_finder with tolerances",
            solver=type(solver))  # fmt: skip
    return constant


def _require_solver(solver: diffrax.AbstractSolver, steps: int) -> None:
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"a solver is one of diffrax's, such as diffrax.Tsit5(), got {solver!r}")
    require(lambda steps: steps >= 1, "steps must be at least 1", steps=steps)
