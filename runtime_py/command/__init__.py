"""Command lines: what every program of edgeproof shares, and the verbs of the runtime.

=============  ===================================================================
parser         one parser class: complaints are `UsageError`, old spellings known
flags          flags that mean the same in every program
dispatch       commands and verbs, and how one is run
console        what is written to stdout and stderr, whatever their encoding
failure        how an error is printed, and the exit code it gives
completions    scripts for shells
=============  ===================================================================
"""
