"""Routing by prefix against taking turns, on conversations of several turns.

command      `packkv bench route`
plan         what is to be measured
trace        conversations, and who asks next
experiment   workers with stores of their own, a router before them, the same trace by each policy
report       JSON, rows of results.csv, a table
"""
