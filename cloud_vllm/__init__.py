"""The cloud side: an HTTP gateway that turns feature packets into text, and its engines."""
