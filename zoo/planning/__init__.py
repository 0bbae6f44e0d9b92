"""What a recipe would do on machines that are not there: its real program compiled, its memory, its time.

`python -m zoo.plan`; docs/plan.md says what is counted and how.
"""
