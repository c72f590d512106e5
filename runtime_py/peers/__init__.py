"""A package beside other runtimes that are installed here: the same decoder's shape, the same threads, in turns."""
