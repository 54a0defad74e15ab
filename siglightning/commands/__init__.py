"""Commands that stand beside fit, validate, test and predict; each has ``main(arguments) -> exit code``."""
