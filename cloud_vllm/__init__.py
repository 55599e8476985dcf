"""The cloud half: a gateway that turns feature packets into text, and the engines behind it."""
