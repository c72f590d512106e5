"""Which bytes of the packages a change of the code changes: the demos exported by two trees and compared.

``python -m parity_tests.laboratory.replay --base main`` exports six demo checkpoints at a base commit and from the tree
this file lies in, and says per class of file (graphs, weights, configurations, manifest, libraries) how many bytes
differ, and which keys of which JSON files. The exit code is 5 where graphs or weights differ.

Each tree is driven by its own ``python -m export`` alone, so that modules may move between the two.
"""
