"""The one error a person can mend: it names the file, the field, the value and the fix."""


class UserError(ValueError):
    """Bad input. The command line prints the sentence without a traceback and exits with code 2."""
