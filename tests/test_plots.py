"""Pictures: what is drawn is what was given, and the claim in a title is measured."""

import re

import numpy as np
import pytest

from diffeq_gen import plots
from diffeq_gen.schedules import Cosine, Flow


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (3, 1), (4, 2), (0, 0)])
def test_a_sheet_holds_every_picture_in_reading_order(n, rows):
    pictures = -1 + 2 * (np.arange(n) + 1).reshape(n, 1, 1, 1) / 10 * np.ones((n, 2, 4, 1))
    grid = plots.digits_grid(pictures, columns=3)
    assert grid.shape == (rows * 3 + 1, 3 * 5 + 1)
    assert sorted(set(grid.ravel().round(6))) == [0.0, *((np.arange(n) + 1) / 10).round(6)]
    for i in range(n):
        place = grid[i // 3 * 3 + 1 : i // 3 * 3 + 3, i % 3 * 5 + 1 : i % 3 * 5 + 5]
        np.testing.assert_allclose(place, (i + 1) / 10)


def test_greys_are_clipped_to_what_can_be_shown():
    grid = plots.digits_grid(np.array([-9.0, 0.0, 9.0]).reshape(3, 1, 1, 1), columns=3)
    np.testing.assert_array_equal(grid[1, 1::2], [0, 0.5, 1])


def test_sheets_and_curves_carry_their_names():
    figure = plots.samples({"one": np.zeros((2, 2, 2, 1)), "two": np.zeros((1, 2, 2, 1))})
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    axis = plots.schedule_curves({"flow": Flow(), "cosine": Cosine()}).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["flow", "cosine"]
    assert all(np.all(np.diff(line.get_ydata()) < 0) for line in axis.lines)


def test_a_loss_curve_is_the_losses():
    line = plots.loss_curve([10, 20, 30], [1.0, 0.5, 0.25]).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xydata(), [[10, 1.0], [20, 0.5], [30, 0.25]])


def test_residuals_are_all_counted_also_where_they_are_zero():
    axis = plots.residuals({"a": 0.0, "b": 0.3, "c": 1.5}).axes[0]
    assert sum(bar.get_height() for bar in axis.patches) == 3


def test_weights_are_densities_and_those_that_rise_are_dashed():
    lines = {line.get_label(): line for line in plots.weight_curves().axes[0].lines}
    for name, line in lines.items():
        x, y = line.get_data()
        np.testing.assert_allclose(np.sum(y) * (x[1] - x[0]), 1.0, rtol=1e-5)
        assert (line.get_linestyle() == "--") == np.any(np.diff(y) > 1e-5 * y[1:]), name
    dashed = sum(line.get_linestyle() == "--" for line in lines.values())
    assert (len(lines), dashed) == (11, 7) and "EDM: 1.00" in lines
    assert 0.9 < float(next(name for name in lines if "logit-normal" in name).split(": ")[1]) < 1


def test_the_title_of_the_trajectories_is_what_was_measured():
    same, other = plots.trajectories(steps=4, paths=3).axes
    assert float(re.search(r"to (\S+)$", same.get_title()).group(1)) < 1e-10
    lines, dots = (np.array([line.get_ydata() for line in part]) for part in (other.lines[:3], other.lines[3:]))
    assert np.max(np.abs(lines - dots)) > 0.01


def test_the_picture_of_the_solvers_counts_evaluations_and_errors_fall():
    for axis in plots.solvers(budgets=(6, 30), paths=4).axes:
        drawn = {line.get_label(): line.get_data() for line in axis.lines}
        assert list(drawn) == [*plots.SOLVERS, "controlled by the moments", "controlled by a mixture"]
        for name, (evaluations, errors) in drawn.items():
            cost = plots.SOLVERS[name][1] if name in plots.SOLVERS else 1
            assert list(evaluations) == [budget // cost * cost for budget in (6, 30)]
            assert errors[1] < errors[0] / 2 and errors[1] > 0, name


def test_flows_bend_unless_the_data_are_a_point():
    """Of N(0, 1) a path from 2 leaves its chord by 2 - 2^{1/2}, and DDIM's steps follow it."""
    axes = plots.bending(steps=200, paths=3).axes
    told = [float(axis.get_title().split(" by ")[1]) for axis in axes]
    np.testing.assert_allclose(told[:3], [0.0, 0.29, 2 - 2**0.5], atol=0.011)
    for axis, end in zip(axes, (None, 0.3, 1.0, None), strict=True):
        t, z = axis.lines[-1].get_data()
        assert len(axis.lines) == 6 and (t[0], t[-1], z[0]) == (1, 0, 2)
        if end is not None:
            np.testing.assert_allclose(z, 2 * np.hypot(t, end * (1 - t)), atol=0.02)


def test_the_picture_of_spectra_shows_where_signal_and_noise_cross():
    pictures = np.random.default_rng(0).normal(size=(300, 6, 6, 1)) + np.linspace(0, 9, 6)[:, None, None]
    left, right = plots.spectra(pictures, times=(0.25, 0.5)).axes
    dots, rings, law = left.lines[:3]
    assert len(dots.get_xdata()) == 35
    np.testing.assert_allclose(
        rings.get_ydata(), 1.0, atol=0.1
    )  # the mean picture is taken away, what is left is white
    np.testing.assert_allclose(rings.get_xdata(), [1 / 6, 2 / 6, 3 / 6])
    levels = [line.get_ydata()[0] for line in left.lines[3:]]
    np.testing.assert_allclose(levels, [1 / 9, 1.0], rtol=1e-5)
    staircase = next(line for line in right.lines if line.get_label() == "pictures")
    t, top = staircase.get_data()
    assert np.all(np.diff(top) <= 0) and top[np.searchsorted(t, 0.4)] > 0.7 and top[np.searchsorted(t, 0.55)] == 0
    cosine = plots.spectra(pictures, schedule=Cosine(), times=(0.25,)).axes[0].lines[3].get_ydata()[0]
    np.testing.assert_allclose(cosine, np.tan(np.pi / 8) ** 2, rtol=1e-5)
    assert "/ f^" in law.get_label()


def test_guided_samples_are_all_drawn_and_their_distance_is_measured():
    plain, strong = plots.guided(scales=(1.0, 4.0), count=2000, steps=30).axes
    for axis, low, high in ((plain, 0.0, 0.1), (strong, 0.2, 0.6)):
        law, *drawn = (text.get_text() for text in axis.get_legend().get_texts())
        apart = [float(re.search(r", (\S+) apart", name).group(1)) for name in drawn]
        assert law == "tempered law" and [name.split(",")[0] for name in drawn] == ["DDIM", "DDPM"]
        assert all(low <= value <= high for value in apart), apart
        x, y = axis.collections[0].get_paths()[0].vertices.T
        np.testing.assert_allclose(abs(np.trapezoid(y, x)), 1.0, rtol=1e-3)
        for stairs in axis.patches:
            heights, edges, _ = stairs.get_data()
            np.testing.assert_allclose(np.sum(heights * np.diff(edges)), 1.0, rtol=2e-3)


def told(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_early_predictions_count_less_with_churn():
    """Weights of x0_hat add up to alpha_end - c_z alpha_start, and grow by 1/(2 (1 - c)) a unit of log-SNR."""
    shares = (0.0, 0.5, 0.75)
    left, right = plots.churn(steps=20, undone=shares).axes
    assert [name.split(":")[0] for name in told(left)] == ["c = 0, DDIM", "c = 0.5, DDPM", "c = 0.75"]
    np.testing.assert_allclose([float(name.split()[-1]) for name in told(left)], [0.5, 1.0, 2.0])
    for line, share in zip(left.lines, shares, strict=True):
        log_snr, weight = line.get_data()
        assert (len(weight), np.round(log_snr[0], 9)) == (20, -10.0)
        alpha, kept = (
            1 / np.hypot(1, np.exp(-5)),
            np.exp(-10 / (1 - share)),
        )  # alpha_start = alpha e^{-5}, c_z < kept e^5
        np.testing.assert_allclose(weight.sum(), alpha * (1 - kept), rtol=1e-6)
        np.testing.assert_allclose(np.diff(np.log(weight)), 1 / (2 * (1 - share)), rtol=1e-4)
    still, *churned = (line.get_ydata() for line in right.lines)
    assert still.max() < 1.07 * still.min() and right.lines[0].get_xdata()[0] == 1
    early = [100 * weight[:10].sum() / weight.sum() for weight in (still, *churned)]
    assert early[0] > 49 and early[1] < 35 and early[2] < 20
    assert [float(name.split()[-2]) for name in told(right)] == [round(share) for share in early]


def test_ddpm_is_ddim_twice_as_far_and_noise_back():
    axes = plots.renoise(lengths=(0.5, 2.0), count=400).axes
    assert told(axes[0]) == ["DDPM", "DDIM, and noise", "z_t", "DDIM", "DDIM, twice as far", "x0_hat"]
    for axis, length in zip(axes, (0.5, 2.0), strict=True):
        assert axis.get_title().startswith(f"a step of {length:g} in log-SNR")
        assert float(re.search(r"laws (\S+) std", axis.get_title()).group(1)) < 1e-13
        lines = {line.get_label(): line.get_xydata() for line in axis.lines}
        one, other = lines["DDPM"], lines["DDIM, and noise"]
        np.testing.assert_allclose(one, other, rtol=1e-12)
        z, single, double, guess = (lines[name][0] for name in ("z_t", "DDIM", "DDIM, twice as far", "x0_hat"))
        np.testing.assert_allclose(one[:-1].mean(axis=0), double, rtol=1e-9)
        for there, share in ((single, length), (double, 2 * length)):
            np.testing.assert_allclose(there - guess, np.exp(-share / 2) * (z - guess), rtol=1e-9)
        radius = np.linalg.norm(one[0] - double)
        for cloud in (line.get_xydata() for line in axis.lines if len(line.get_xdata()) == 400):
            inside = np.mean(np.linalg.norm(cloud - double, axis=1) < radius)
            assert abs(inside - (1 - np.exp(-2))) < 4 * np.sqrt(0.117 / 400)


def test_mirrored_ddim_has_the_laws_of_diffusion_but_other_particles():
    mirrored, diffused, errors = plots.flipped(steps=(8, 16, 32), particles=5).axes
    np.testing.assert_allclose([float(name.split()[-1]) for name in told(errors)], [1.0, 2.0], atol=0.15)
    for line in errors.lines:
        np.testing.assert_allclose(line.get_xdata(), [0.1, 0.05, 0.025])
    smooth, jagged = (np.array([line.get_ydata() for line in axis.lines]) for axis in (mirrored, diffused))
    assert smooth.shape == jagged.shape == (5, 33)
    np.testing.assert_array_equal(smooth[:, 0], jagged[:, 0])
    assert np.all(np.diff(smooth, axis=0) > 0) and not np.all(np.diff(jagged, axis=0) > 0)
