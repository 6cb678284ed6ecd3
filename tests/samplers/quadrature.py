"""The steps of `multistep` and `singlestep` by another route: numpy, and the integral of a polynomial by Gauss and Legendre.

    z_s/m_s = z_t/m_t + int P(y) dE(y) + noise,        Var[noise in z_s] = -sigma_s^2 expm1(-o),    o = N(lambda_s) - N(lambda_t)

    data      P of x0_hat,     y = log(alpha/sigma) + N/2,    E = e^y,       m = alpha e^{-y}
    noise     P of eps_hat,    y = log(alpha/sigma),          E = e^{-y},    m = alpha
    slope     P of eps_hat,    y = sigma/alpha,               E = y,         m = alpha
    signal    P of x0_hat,     y = alpha/sigma,               E = y,         m = sigma

P goes through all values given.  The schedule is the cosine, log(alpha/sigma) = log cot(pi t/2).
"""

from typing import NamedTuple

import numpy as np

NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)


def still(log_snr):
    """No noise."""
    return 0.0 * log_snr


class Route(NamedTuple):
    """A rule, and the noise N up to a log-SNR."""

    rule: str
    noise: object = still

    def ends(self, t):
        """(m, y) at a time."""
        alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
        if self.rule == "data":
            y = np.log(alpha / sigma) + self.noise(2 * np.log(alpha / sigma)) / 2
            return alpha * np.exp(-y), y
        m = sigma if self.rule == "signal" else alpha
        return m, {"noise": np.log(alpha / sigma), "slope": sigma / alpha, "signal": alpha / sigma}[self.rule]

    def value(self, x0, z, t):
        """What is interpolated."""
        eps = (z - np.cos(np.pi * t / 2) * x0) / np.sin(np.pi * t / 2)
        return x0 if self.rule in ("data", "signal") else eps

    def moved(self, z, t, s, known):
        """z_s without noise, from `known` [(time, value), ...]."""
        (m, low), (m_s, high) = self.ends(t), self.ends(s)
        places = np.array([self.ends(r)[1] - low for r, _ in known])
        powers = np.linalg.solve(np.vander(places, increasing=True), np.stack([value for _, value in known]))
        half = (high - low) / 2
        y = low + half * (NODES + 1)
        slope = {"data": np.exp, "noise": lambda y: -np.exp(-y)}.get(self.rule, np.ones_like)(y)
        integral = (half * WEIGHTS * slope) @ np.vander(y - low, len(known), increasing=True) @ powers
        return m_s * (z / m + integral)

    def spread(self, t, s):
        """The deviation of the noise that a step from t to s leaves."""
        gained = self.noise(self.log_snr(s)) - self.noise(self.log_snr(t))
        return np.sin(np.pi * s / 2) * np.sqrt(-np.expm1(-gained))

    @staticmethod
    def log_snr(t):
        """2 log cot(pi t/2)."""
        return -2 * np.log(np.tan(np.pi * t / 2))

    @staticmethod
    def time_at(log_snr):
        """Its inverse."""
        return 2 / np.pi * np.arctan(np.exp(-log_snr / 2))


def multistep_by_quadrature(denoise, route, times, z, noise, *, order, corrector=False):
    """Every state after the first, of `order` values at most; with the corrector each is improved by the value at its end."""
    known, states, begun = [], [], None
    for t, s, eps in zip(times[:-1], times[1:], noise, strict=True):
        now = t, route.value(denoise(z, t), z, t)
        if corrector and begun is not None:
            start, before, pushed = begun
            z = route.moved(start, before, t, [now, *known[:order]]) + pushed
        known = [now, *known]
        begun = z, t, route.spread(t, s) * eps
        z = route.moved(z, t, s, known[:order]) + begun[2]
        states.append(z)
    return states


def singlestep_by_quadrature(denoise, route, t, s, z, noise, *, shares):
    """[the state at each stage, ..., at s]: stages at these shares of the log-SNR between, one Brownian path through all."""
    known, path, last, states = [(t, route.value(denoise(z, t), z, t))], 0.0, t, []
    begin, end = route.log_snr(t), route.log_snr(s)
    for share, eps in zip((*shares, 1.0), noise, strict=True):
        r = route.time_at(begin + share * (end - begin)) if share < 1 else s
        path = route.ends(r)[0] / route.ends(last)[0] * path + route.spread(last, r) * eps
        states.append(route.moved(z, t, r, known) + path)
        known.append((r, route.value(denoise(states[-1], r), states[-1], r)))
        last = r
    return states
