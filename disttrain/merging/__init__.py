"""``disttrain merge``: saved models of several workers or runs become one."""
