"""The root of every error whose message is written for the person at the page or the shell."""


class FrescoError(ValueError):
    """Something that cannot be done as asked; the message is one clear sentence that says what to do."""
