"""The order of writing: in the terminal, as a picture and as a page; plots of training."""

from .comparison import plot_comparison
from .html import write_order_html
from .picture import order_picture
from .plots import plot_order, plot_order_over_steps
from .terminal import order_text, token_texts, visible

__all__ = [
    "order_picture",
    "order_text",
    "plot_comparison",
    "plot_order",
    "plot_order_over_steps",
    "token_texts",
    "visible",
    "write_order_html",
]
