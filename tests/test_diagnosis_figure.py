"""The doctor's figure: legends cover nothing, and the distance has an axis of its own, as it isn't an RMS per pixel."""
from __future__ import annotations

from launch.diagnosis import figure

ROW = {"explained": 0.9, "gaussian": 0.5, "slope": 1.0}
STEP = {"drift": 0.1, "noise_size": 0.1, "drift_total": 1.0, "noise_total": 1.0, "distance": 0.5, "step_size": 0.01}
CONTENT = {
    "trusted": [0.01, 10.0], "calibration": [{**ROW, "sigma": sigma} for sigma in (0.01, 0.1, 1.0, 10.0)],
    "steps": [{**STEP, "index": index, "sigma": 10.0 / (index + 1)} for index in range(50)],
    "curvature": [{"on_path": True, "step": 3, "stable_below": 0.3}]}


def test_legends_lie_below_their_axes_and_the_distance_on_its_own() -> None:
    drawn = figure.plt.figure(figsize=(13, 7.6), layout="constrained")
    axes = drawn.subplots(1, 3)
    for one, draw in zip(axes, (figure.calibration_axes, figure.step_axes, figure.stability_axes), strict=True):
        draw(one, CONTENT)
    drawn.canvas.draw()
    for one in axes:
        legend = one.get_legend().get_window_extent()
        assert legend.y1 < one.get_window_extent().y0
        assert legend.x0 > 0 and legend.x1 < drawn.bbox.x1
    right = next(one for one in drawn.axes if one.get_ylabel().startswith("distance"))
    assert right is not axes[1] and axes[1].get_ylabel() == "RMS per pixel"
    assert [line.get_label() for line in right.get_lines()] == ["distance from the data (right)"]
    assert not any("distance" in str(line.get_label()) for line in axes[1].get_lines())
    figure.plt.close(drawn)
