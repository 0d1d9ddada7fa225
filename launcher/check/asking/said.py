"""What a program of a check says to the person who runs it, beside its answer."""

SAID = "verst: "  # begins such a line on its stderr
