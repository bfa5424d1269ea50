"""The command line: arguments, output and exit statuses. :mod:`paraminit_ext.models` does the work."""
