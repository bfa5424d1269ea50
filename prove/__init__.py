"""`make prove`: the checks that take minutes, in steps. Each check returns a `CheckResult`."""
