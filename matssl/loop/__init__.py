"""The closed loop of a folder: predict, correct, train again, promote or keep.

``turn`` is the order of the steps; each of them writes its files first and its line of the ledger
last, so that a loop that was killed anywhere goes on with the first step that has no line.
"""
