"""The one exception that reaches a user.

Whatever is wrong with what the user gave us (a file, a recipe, a command line, a full disk) is raised
as `UserError` with a message that says what is wrong, where, and what to do. The command line prints it
without a traceback and exits with 1. Anything else that escapes is a bug of ours.
"""


class UserError(Exception):
    """A mistake in the input or the environment that the user can mend. Every line of the message stands alone."""
