"""Programs that run in environments of their own, one a library: each quantises the same model from the same ids and writes
the weights read back, under the names that transformers gives them.

    python PROGRAM.py MODEL IDS.json OUT.safetensors [NAME=VALUE...]

They import nothing of the product. The last line of their output is JSON: processor seconds, and what else they know.
"""
