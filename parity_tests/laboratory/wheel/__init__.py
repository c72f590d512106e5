"""What a user of the wheel gets: built, looked into, installed in an empty environment in another folder, and used there.

``python -m parity_tests.laboratory.wheel`` (``./run wheel``) needs pip and a package index, and some minutes.
"""
