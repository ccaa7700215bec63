"""The style of the report's plots, and plots and images as PNG data URIs.

Matplotlib and Pillow are imported when the first one is drawn, since most commands draw none.
"""

import base64
import io

import numpy as np

GREY, MUTED, DARK = "#c3c9d0", "#566270", "#3c4753"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#222255", "#44bb99", "#999933")


def new_figure(width: float = 4.7, height: float = 2.8):
    """Returns an empty matplotlib figure, in inches, and its axes in the report's style."""
    from matplotlib.figure import Figure  # not pyplot: no display and no global state

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, styled(figure.add_subplot())


def styled(axes):
    """Gives matplotlib axes the report's style and returns them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8ebef", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors=DARK)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return axes


def figure_uri(figure) -> str:
    """Returns a matplotlib figure as a PNG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _data_uri(buffer)


def image_uri(image: np.ndarray) -> str:
    """Returns an (H, W, 3) uint8 image as a PNG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "png", optimize=True)
    return _data_uri(buffer)


def _data_uri(png: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
