"""The order in which a text was written: in the terminal and as a picture."""

from .picture import order_picture
from .terminal import order_text, token_texts

__all__ = ["order_picture", "order_text", "token_texts"]
