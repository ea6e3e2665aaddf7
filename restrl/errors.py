"""The error a user's mistake becomes: one sentence that names the place and the remedy."""


class RestrlError(Exception):
    """A mistake in what the user gave (files, config, model); printed without a traceback."""
